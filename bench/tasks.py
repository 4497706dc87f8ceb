"""The tasks, each made once and kept as a file of arrays that every arm reads: data, split, first weights, numbers.

python -m bench.tasks mlp-100        (needs fedopt; the arms need numpy and torch only)
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import nets

CACHE = Path(__file__).parent / ".cache"
SEED = 1


@dataclass(frozen=True)
class Task:
    """What is trained and how. The names of the fields are those of the tables."""

    name: str
    title: str
    net: str
    data: str
    """Which function below makes the arrays."""
    clients: int | None
    """None: as many as the data has."""
    cohort: int | None
    """None: everybody."""
    samples: int | None
    """Per client, drawn at random from the training part; None: the data has owners."""
    batch: int = 10
    steps: int | None = None
    """Local batches; None: one epoch."""
    lr: float = 0.1
    work: str = "train"
    """`train`, or `null`: a client answers with a multiple of the model and does nothing else."""
    accuracy_rounds: int | None = None
    """Rounds from the first weights after which the accuracy is taken, where the data is real."""
    rep_seconds: float = 4.0
    """What a repetition aims at."""
    auto_rounds: int = 20
    """Least rounds of a repetition of `auto`."""
    quick: bool = False
    """Part of `make bench-quick`."""
    peers: tuple[str, ...] = ("pfl", "plain", "flower")
    group: str = ""
    """Tasks of one group take turns with each other, since they are compared; empty: turns among its own arms."""

    @property
    def turns(self) -> str:
        return self.group or self.name


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("null-4810", "Null work, 4,810 parameters", "mlp", "digits", 1000, 50, 20, work="null", rep_seconds=3.0,
             quick=True),
        Task("null-1.6m", "Null work, 1,626,442 parameters", "cnn", "images", 1000, 50, 50, work="null"),
        Task("mlp-10", "Digits MLP, cohort 10 of 100", "mlp", "digits", 100, 10, 20, accuracy_rounds=100,
             rep_seconds=3.0, quick=True),
        Task("mlp-100", "Digits MLP, cohort 100 of 1000", "mlp", "digits", 1000, 100, 20, accuracy_rounds=50,
             rep_seconds=3.0, quick=True),
        Task("mlp-1000", "Digits MLP, cohort 1000 of 2000", "mlp", "digits", 2000, 1000, 20, accuracy_rounds=10),
        Task("cnn", "CNN of the CIFAR-10 benchmark of pfl, cohort 50 of 1000", "cnn", "images", 1000, 50, 50,
             rep_seconds=9.0),
        Task("ecg", "ResNet1d on ECG, 17 patients, all of them", "resnet1d", "ecg", None, None, None, batch=32, steps=4,
             accuracy_rounds=8, rep_seconds=6.0),
        Task("lstm", "Character LSTM on plays, cohort 10 of all roles", "char_lstm", "plays", None, 10, None, steps=6,
             lr=1.0, accuracy_rounds=8, rep_seconds=4.0),
        Task("dormant-1e4", "Digits MLP, 1,000 of 10,000 clients", "mlp", "digits", 10_000, 1000, 20,
             peers=("pfl", "plain"), group="dormant"),
        Task("dormant-1e6", "Digits MLP, 1,000 of 1,000,000 clients", "mlp", "digits", 1_000_000, 1000, 20,
             peers=("pfl", "plain"), group="dormant"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A task with its arrays, as torch tensors."""

    task: Task
    x: Tensor
    y: Tensor
    index: Tensor
    """Sample of each position; client c has the positions `offsets[c] : offsets[c + 1]`."""
    offsets: Tensor
    initial: dict[str, Tensor]
    test_x: Tensor
    test_y: Tensor
    classes: int
    real: bool

    @property
    def clients(self) -> int:
        return self.offsets.numel() - 1

    @property
    def cohort(self) -> int:
        return self.task.cohort or self.clients

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.initial.values())

    def net(self, fused: bool = False) -> nn.Module:
        """The network with its first weights; `fused` where torch has a faster form of it that cannot be stacked."""
        fused = fused and self.task.net == "char_lstm"
        module = nets.NETS[self.task.net](tuple(self.x.shape[1:]), self.classes, **({"fused": True} if fused else {}))
        names = nets.fused_names(list(self.initial)) if fused else list(self.initial)
        module.load_state_dict(dict(zip(names, self.initial.values(), strict=True)))
        return module.to(self.x.device)

    def walk(self, client: int, rng: np.random.Generator) -> Tensor:
        """The samples that a client meets in one round, in order."""
        own = self.index[int(self.offsets[client]) : int(self.offsets[client + 1])]
        order = torch.from_numpy(rng.permutation(own.numel()))
        if self.task.steps is not None:
            need = self.task.steps * self.task.batch
            order = order.repeat(-(-need // order.numel()))[:need]
        return own[order]

    def accuracy(self, module: Callable[[Tensor], Tensor]) -> float | None:
        """Share of right answers on the held-out part."""
        if not self.real or not self.test_y.numel():
            return None
        right = 0
        with torch.no_grad():
            for x, y in zip(self.test_x.split(500), self.test_y.split(500), strict=True):
                right += int((module(x).argmax(-1) == y).sum())
        return right / self.test_y.numel()


def load(name: str, *, cohort: int | None = None, device: str = "cpu") -> Loaded:
    """A task from its file; with another cohort or on another device where a measurement asks for it."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        raise SystemExit(f"{path} is absent: make it with `python -m bench.tasks {name}`")
    with np.load(path) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "facts"}
        facts = json.loads(str(stored["facts"]))
    initial = {key.removeprefix("initial/"): value for key, value in arrays.items() if key.startswith("initial/")}
    task = TASKS[name] if cohort is None else dataclasses.replace(TASKS[name], cohort=cohort)
    return Loaded(
        task,
        arrays["x"].to(device),
        arrays["y"].to(device),
        arrays["index"],
        arrays["offsets"],
        {key: initial[key].to(device) for key in facts["parameters"]},
        arrays["test_x"].to(device),
        arrays["test_y"].to(device),
        facts["classes"],
        facts["real"],
    )


def make(name: str, *, again: bool = False) -> Path:
    """The file of a task, made if it is absent or was made for another definition of the task."""
    task, path = TASKS[name], CACHE / f"{name}.npz"
    stamp = json.dumps([dataclasses.asdict(task), os.environ.get("BENCH_CIFAR10", "")])
    if path.exists() and not again:
        with np.load(path) as stored:
            if json.loads(str(stored["facts"])).get("stamp") == stamp:
                return path
    source = _SOURCES[task.data]()
    x, y = source["x"], source["y"]
    rng = np.random.default_rng(SEED)
    if task.samples is None:
        order = np.argsort(source["groups"], kind="stable")
        index, sizes = order, np.bincount(source["groups"])
    else:
        assert task.clients is not None
        if len(y) >= task.clients * task.samples:  # enough for everybody: nobody shares a sample
            index = rng.permutation(len(y))[: task.clients * task.samples]
        else:
            index = rng.integers(0, len(y), task.clients * task.samples)
        sizes = np.full(task.clients, task.samples)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    classes = source["classes"]
    torch.manual_seed(SEED)
    module = nets.NETS[task.net](tuple(x.shape[1:]), classes)
    initial = {key: value.detach().numpy() for key, value in module.named_parameters()}
    facts = {"stamp": stamp, "classes": classes, "real": source["real"], "parameters": list(initial)}
    CACHE.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {
        "x": x,
        "y": y.astype(np.int64),
        "index": index.astype(np.int64),
        "offsets": offsets.astype(np.int64),
        "test_x": source["test_x"],
        "test_y": source["test_y"].astype(np.int64),
        "facts": np.array(json.dumps(facts)),
        **{f"initial/{key}": value for key, value in initial.items()},
    }
    np.savez(partial, **arrays)
    partial.replace(path)
    return path


def _digits() -> dict[str, Any]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    x, y = (images[order] / 16.0).astype(np.float32), labels[order]
    cut = len(y) * 4 // 5
    return {"x": x[:cut], "y": y[:cut], "test_x": x[cut:], "test_y": y[cut:], "classes": 10, "real": True}


def _images() -> dict[str, Any]:
    folder = os.environ.get("BENCH_CIFAR10")
    if folder:
        from fedopt.data import registry

        dataset = registry.build("cifar10", {"folder": folder}, "data")
        test = dataset.test
        return {"x": dataset.x.numpy(), "y": dataset.y.numpy(), "test_x": test.x.numpy(), "test_y": test.y.numpy(),
                "classes": 10, "real": True}  # fmt: skip
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((5_000, 3, 32, 32), dtype=np.float32)  # clients share them: speed does not depend on it
    y = rng.integers(0, 10, 5_000)
    return {"x": x, "y": y, "test_x": x[:0], "test_y": y[:0], "classes": 10, "real": False}


def _owned(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from fedopt.data import registry

    dataset = registry.build(name, options, "data")
    test = dataset.test
    return {
        "x": dataset.x.numpy(), "y": dataset.y.numpy(), "groups": dataset.groups.numpy(),
        "test_x": test.x.numpy(), "test_y": test.y.numpy(), "classes": len(dataset.class_names), "real": True,
    }  # fmt: skip


def _ecg() -> dict[str, Any]:
    """As configs/ecg_patients.toml."""
    held_out = ("106", "116", "201", "209", "223")
    options = {"folder": "mitdb", "held_out": held_out, "leads": 0, "before": 300, "after": 300, "decimate": 4}
    return _owned("ecg", options)


def _plays() -> dict[str, Any]:
    """As configs/shakespeare.toml."""
    return _owned("plays", {"file": "shakespeare/input.txt", "length": 80, "min_samples": 20})


_SOURCES = {"digits": _digits, "images": _images, "ecg": _ecg, "plays": _plays}


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TASKS:
        print(make(wanted))
