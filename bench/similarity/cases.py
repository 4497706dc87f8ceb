"""What is compared: problems on real data, and methods with the parameters that theory gives them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedopt import config as configs
from fedopt import data, keys
from fedopt import setup as setups
from fedopt.data import Dataset, Federation, Shards, Split, federate
from fedopt.setup import Setup

CONDITION = 100.0
"""l2 is the smoothness of the loss, divided by this."""
COLUMNS = {"a9a": 123, "mushrooms": 112}
APART = 71
"""Column of a9a by which its two groups are told apart, see docs/similarity.md."""
SERVER = 4000
"""Samples of the server where there are two groups."""


class Task(NamedTuple):
    """A problem: data, loss, clients, and how they are grouped."""

    data: str
    loss: str
    clients: int
    groups: str = ""
    """`columns`: a9a by a column; `beats`: heart beats by their class."""

    @property
    def word(self) -> str:
        return "-".join(str(part) for part in self if part)


class Method(NamedTuple):
    """A strategy, what is compressed, and after how many rounds it is given up."""

    strategy: dict[str, Any]
    compression: dict[str, Any] | None = None
    most: int = 1500
    optimizer: float | None = None
    """Local learning rate, as a share of 1 over the smoothness."""


def _randk(omega: float) -> dict[str, Any]:
    return {"name": "randk", "share": 1.0 / omega}


SINGLE: dict[str, Method] = {
    "agd": Method({"name": "agd"}),
    "aeg": Method({"name": "aeg"}),
    "proxy prox": Method({"name": "proxy_prox"}),
    "dane": Method({"name": "dane"}),
    "s-dane, 5 clients": Method({"name": "s_dane", "take": 5}),
    "svrp": Method({"name": "svrp"}, most=2000),
    "catalyzed svrp": Method({"name": "catalyzed_svrp"}, most=2000),
    "svrs": Method({"name": "svrs"}, most=2000),
    "acc svrs": Method({"name": "acc_svrs"}, most=2000),
    "olga, ω = 10.25": Method({"name": "olga"}, _randk(10.25), 2000),
    "olga, ω = 7.23": Method({"name": "olga"}, _randk(7.23), 2000),
    "olga, ω = 4.1": Method({"name": "olga"}, _randk(4.1), 2000),
    "olga, ω = 3.33": Method({"name": "olga"}, _randk(3.33), 2000),
    "olga, ω = 123": Method({"name": "olga"}, _randk(123.0), 2000),
    "ef-olga, top 30 %": Method({"name": "ef_olga"}, {"name": "topk", "share": 0.3, "feedback": "ef14"}, 2000),
    "scaffold": Method({"name": "scaffold", "batch_size": 0, "epochs": 10}, optimizer=1.0),
    "fedprox": Method({"name": "fedprox", "batch_size": 0, "epochs": 10, "mu": 0.1}, optimizer=1.0),
}

TWO: dict[str, Method] = {
    "agd": Method({"name": "agd"}, most=2000),
    "aeg": Method({"name": "aeg"}, most=2000),
    "c-aeg": Method({"name": "c_aeg"}, most=2000),
    "vrcs": Method({"name": "vrcs"}, most=2000),
    "acc vrcs": Method({"name": "acc_vrcs"}, most=2000),
    "hasca": Method({"name": "hasca"}, most=2000),
    "sc-aeg, s = 1/16": Method({"name": "sc_aeg"}, most=2000),
}


def published() -> list[Task]:
    """The problems that were published for OLGA."""
    return [
        Task(name, loss, clients)
        for name in COLUMNS
        for loss in ("squares", "logistic")
        for clients in (20, 50, 100)
    ]  # fmt: skip


def separated() -> list[Task]:
    """Problems with two groups of clients or samples."""
    return [
        Task("a9a", "squares", 20, "columns"),
        Task("a9a", "logistic", 20, "columns"),
        Task("ecg", "cross_entropy", 20, "beats"),
    ]


@lru_cache(maxsize=2)
def _table(name: str) -> tuple[Tensor, Tensor]:
    """Rows and labels 0 and 1."""
    found = data.registry.build("libsvm", {"file": f"libsvm/{name}", "features": COLUMNS[name]}, "data")
    return found.x, found.y


@lru_cache(maxsize=1)
def federation(task: Task) -> Federation:
    """Everybody's data; floats as labels, -1 and 1 for squares, 0 and 1 for the logistic loss."""
    if task.data == "ecg":
        return _beats(task.clients)
    x, y = _table(task.data)
    labels = y.float() if task.loss == "logistic" else 2.0 * y.float() - 1.0
    key = keys.fold(keys.root(1), task.data)
    if task.groups == "columns":
        return _by_column(x, labels, task.clients, key)
    dataset = Dataset(x, labels, ("label",), task="regression")
    own = len(y) // (task.clients + 1)  # the server has as much as a client
    return federate(dataset, clients=task.clients, test_share=0.0, trial_samples=own, key=key)


def rare(task: Task) -> list[int]:
    """Clients of the second group: a fifth."""
    return list(range(task.clients - task.clients // 5, task.clients))


def _by_column(x: Tensor, labels: Tensor, clients: int, key: Tensor) -> Federation:
    """People with a one in a column are with the last fifth of the clients; the server has some of the others."""
    order = keys.permutation(key, len(labels))
    x, labels = x[order], labels[order]
    apart = x[:, APART] > 0
    common, special = torch.nonzero(~apart).flatten(), torch.nonzero(apart).flatten()
    server, common = common[:SERVER], common[SERVER:]
    few = clients // 5
    parts = [*common.chunk(clients - few), *special.chunk(few)]
    offsets = torch.tensor([0, *np.cumsum([len(p) for p in parts]).tolist()])
    index = torch.cat(parts)
    names = tuple(f"client {i}" for i in range(clients))
    trial = Split(x[server], labels[server])
    return Federation(
        {"train": Shards(x, index, labels[index], offsets)}, {"trial": trial}, ("label",), names, "regression"
    )


def _beats(clients: int) -> Federation:
    """Heart beats of patients; the server holds some beats of all patients."""
    dataset = data.registry.build("ecg", {"decimate": 4}, "data")
    dataset = dataset._replace(x=dataset.x.flatten(1), test=None)
    return federate(
        dataset,
        clients=clients,
        test_share=0.0,
        trial_samples=SERVER,
        partition="iid",
        key=keys.fold(keys.root(1), "ecg"),
    )


def smoothness(task: Task) -> float:
    """Of the mean loss over all samples: λ_max(AᵀA)/n, a quarter of it for the logistic loss, a half for softmax."""
    shards = federation(task).splits["train"]
    a = shards.x[shards.index].double()
    largest = float(torch.linalg.eigvalsh(a.T @ a / len(a))[-1])
    return largest * {"squares": 1.0, "logistic": 0.25, "cross_entropy": 0.5}[task.loss]


def setup(task: Task, name: str, seed: int = 1, **options: Any) -> Setup:
    """The experiment of a task and a method."""
    method = (TWO if task.groups else SINGLE)[name]
    smooth = smoothness(task)
    strategy = dict(method.strategy)
    if method.optimizer is None:
        strategy["l2"] = smooth / CONDITION
    if task.groups == "columns":
        strategy["rare"] = rare(task)
    if task.groups == "beats":
        classes = federation(task).class_names
        strategy["rare_classes"] = [i for i, word in enumerate(classes) if word != "N"]
    document: dict[str, Any] = {
        "run": {"rounds": 10**6, "seed": seed, "dtype": "float64"},
        "model": {"name": "logistic", "bias": False, "loss": task.loss},
        "strategy": strategy | options,
        "executor": {"name": "stacked"},
    }
    if method.compression is not None:
        document["compression"] = method.compression
    if method.optimizer is not None:
        document["optimizer"] = {
            "name": "sgd", "lr": method.optimizer / smooth, "weight_decay": smooth / CONDITION
        }  # fmt: skip
    return setups.build(configs.load(document), data=federation(task))
