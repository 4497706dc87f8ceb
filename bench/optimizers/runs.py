"""Tasks, optimizers, and one run of one on the other.

All training data are in one place, mini-batches are drawn anew in each round, the learning rate falls as a cosine from
its peak to 0 over the rounds. The peak is a base of the optimizer times each of `FACTORS`; the factor with the lowest
loss on 500 samples that are held out for it, on the first seed, is run with the other seeds. A run ends with its rounds
or earlier, when its time is over (`Task.seconds`), which it says.

A file for each task and optimizer is stored in bench/cells/optimizers.
"""

from __future__ import annotations

import json
import math
import time
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from bench.processes import ROOT
from fedopt import config as configs
from fedopt import keys, optimizers
from fedopt import setup as setups
from fedopt.data import Federation
from fedopt.engine import evaluate
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.problem import Problem
from fedopt.types import Named

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
SEEDS = (1, 2, 3)
RESULTS = ROOT / "bench" / "cells" / "optimizers"
ADAM = 3e-3
"""Peak of the optimizer of what is no matrix, before the factor."""


class Task(NamedTuple):
    """What is learnt."""

    data: dict[str, Any]
    model: dict[str, Any]
    batch: int
    rounds: int
    steps: int
    """Batches in a round."""
    seconds: float = 10.0
    badly: bool = False
    """Each column of the features is multiplied by exp(2 N(0, 1)), the same for all seeds."""
    target: float = 0.1
    """The loss at which a run is expected to end, for the adaptive warm-up."""


def _svm(name: str, features: int, **options: Any) -> Task:
    return Task(
        {"name": "libsvm", "file": f"libsvm/{name}", "features": features},
        {"name": "logistic"},
        batch=128,
        rounds=20,
        steps=20,
        target=0.3 if name == "a9a" else 0.01,
        **options,
    )


TASKS: dict[str, Task] = {
    "digits, MLP": Task({"name": "digits"}, {"name": "mlp", "hidden": [64]}, 64, 20, 15),
    "a9a": _svm("a9a", 123),
    "a9a, badly scaled": _svm("a9a", 123, badly=True),
    "mushrooms": _svm("mushrooms", 112),
    "mushrooms, badly scaled": _svm("mushrooms", 112, badly=True),
    "MNIST, LeNet-5": Task(
        {
            "name": "idx",
            "images": "mnist10k/t10k-images-idx3-ubyte.gz",
            "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
        },
        {"name": "lenet5"},
        64,
        20,
        10,
    ),
    "Shakespeare, transformer": Task(
        {"name": "plays", "length": 64, "min_samples": 2, "partition": "natural"},
        {"name": "causal_transformer", "dim": 64, "depth": 2, "heads": 4},
        16,
        20,
        15,
        seconds=60.0,
        target=2.0,
    ),
}


class Arm(NamedTuple):
    """An optimizer, and the base of its peak; `tuned` names where the peak goes."""

    options: dict[str, Any]
    base: float
    matrices: bool = False
    """It has another optimizer for what is no matrix, whose peak is `ADAM` times the same factor."""
    tuned: str = "lr"


def _matrix(base: float, **options: Any) -> Arm:
    return Arm(options, base, matrices=True)


ARMS: dict[str, Arm] = {
    "sgd": Arm({"momentum": 0.9}, 0.03),
    "normalised_sgd": Arm({}, 0.03),
    "clip_sgd": Arm({"threshold": 1.0, "momentum": 0.9}, 0.03),
    "signum": Arm({}, 1e-3),
    "lion": Arm({}, 1e-3),
    "adam": Arm({}, 3e-3),
    "adamw": Arm({"weight_decay": 0.01}, 3e-3),
    "adagrad": Arm({}, 0.03),
    "yogi": Arm({}, 3e-3),
    "rmsprop": Arm({}, 1e-3),
    "madgrad": Arm({}, 3e-3),
    "adam_sania": Arm({}, 0.03),
    "prodigy": Arm({}, 1.0),
    "schedule_free": Arm({"warmup": 30}, 3e-3),
    "alias": Arm({}, 1.0),
    "alias_adam": Arm({}, 1.0),
    "also": Arm({"of": {"name": "adam"}}, 3e-3, tuned="of.lr"),
    "muon": _matrix(0.02),
    "warmup": Arm({"of": {"name": "muon"}}, 0.02, matrices=True, tuned="of.lr"),
    "scion": _matrix(0.01),
    "lion_muon": _matrix(0.01),
    "muadam": _matrix(0.02),
    "muadam_sania": _matrix(0.02),
    "shampoo": _matrix(0.03),
    "one_sided_shampoo": _matrix(0.03),
    "kfac": _matrix(0.03),
    "kl_shampoo": _matrix(0.03),
    "soap": _matrix(3e-3),
    "splus": _matrix(0.1),
}


class Run(NamedTuple):
    """How a run ended."""

    factor: float
    seed: int
    held_out: float
    """Loss on the samples by which the factor is chosen; infinite where it left the numbers."""
    loss: float
    accuracy: float
    steps: int
    seconds: float
    """Of training, of the processor."""
    state: float
    """Bytes of the optimizer's state per parameter."""


def optimizer(arm: str, task: Task, factor: float, classes: int) -> dict[str, Any]:
    """The section [optimizer]."""
    kind = ARMS[arm]

    def falling(peak: float) -> dict[str, Any]:
        return {"schedule": "cosine", "start": peak * factor, "end": 0.0, "rounds": task.rounds}

    table: dict[str, Any] = {"name": arm, **json.loads(json.dumps(kind.options))}
    place = table["of"] if kind.tuned == "of.lr" else table
    place["lr"] = kind.base * factor if arm in ("warmup", "schedule_free") else falling(kind.base)
    if kind.matrices:
        place["vectors"] = {"name": "adamw", "lr": ADAM * factor if arm == "warmup" else falling(ADAM)}
        place["apart"] = ["tokens*", "positions", "head*"]  # embeddings, and the last layer, of the transformer
    if arm == "warmup":
        table |= {"target": task.target, "steps": task.rounds * task.steps}
    if arm == "also":
        table["groups"] = classes
    return table


@lru_cache(maxsize=1)
def federation(name: str) -> Federation:
    """The task's data, the same for all optimizers and seeds."""
    task = TASKS[name]
    found = setups.build(configs.load(document(name, {"name": "sgd", "lr": 0.1}, 1))).problem.data
    if not task.badly:
        return found
    width = found.inputs[-1]
    scale = (2.0 * keys.normal(keys.fold(keys.root(0), "columns"), width)).exp()
    splits = {split: shards._replace(x=shards.x * scale) for split, shards in found.splits.items()}
    server = {split: held._replace(x=held.x * scale) for split, held in found.server.items()}
    return found._replace(splits=splits, server=server)


def document(name: str, optimizer: dict[str, Any], seed: int) -> dict[str, Any]:
    """The experiment as a config."""
    task = TASKS[name]
    clients = {} if task.data.get("partition") == "natural" else {"clients": 1}
    return {
        "run": {"rounds": task.rounds, "seed": seed},
        "data": {**task.data, **clients, "trial_samples": 500},
        "model": task.model,
        "strategy": {"name": "centralised", "batch_size": task.batch, "steps": task.steps},
        "optimizer": optimizer,
    }


class Trained(NamedTuple):
    """Where training ended."""

    problem: Problem
    model: Named
    loss: float
    """The last mean training loss of a round."""
    rounds: int
    seconds: float


def trained(document: dict[str, Any], data: Federation, limit: float = math.inf) -> Trained:
    """The experiment on these data, until its rounds are over, its loss leaves the numbers, or its time is over."""
    torch.set_num_threads(1)
    setup = setups.build(configs.load(document), data=data)
    problem, strategy = setup.problem, setup.strategy
    key = keys.root(document["run"]["seed"])
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    rounds, started, loss = 0, time.process_time(), math.inf  # other work on the machine does not count
    for step in exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, key):
        state, rounds = step.state, rounds + 1
        loss = float(step.replies.metrics["loss"].mean()) if step.replies.clients.numel() else math.inf
        over = rounds == document["run"]["rounds"] or time.process_time() - started > limit
        if over or not math.isfinite(loss):
            break
    model = strategy.model(problem, state)
    assert model is not None
    return Trained(problem, model, loss, rounds, time.process_time() - started)


def run(name: str, arm: str, factor: float, seed: int) -> Run:
    """Train once."""
    task, data = TASKS[name], federation(name)
    table = optimizer(arm, task, factor, data.classes)
    problem, model, loss, rounds, seconds = trained(document(name, table, seed), data, task.seconds)
    held, test = (evaluate.on_server(problem, model, split) for split in ("trial", "test"))
    params, _ = problem.unpack(model)
    leaves = pytree.tree_leaves(optimizers.build(arm, {k: v for k, v in table.items() if k != "name"}).init(params))
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves) / problem.d
    lost = not math.isfinite(loss) or not math.isfinite(held["loss"])
    return Run(
        factor,
        seed,
        math.inf if lost else held["loss"],
        test["loss"],
        test["accuracy"],
        rounds * task.steps,
        seconds,
        size,
    )


def search(name: str, arm: str) -> list[Run]:
    """All runs of an optimizer on a task; what is stored is not run again."""
    known = {(found.factor, found.seed): found for found in read(name, arm)}

    def ran(factor: float, seed: int) -> None:
        if (factor, seed) in known:
            return
        known[factor, seed] = run(name, arm, factor, seed)
        RESULTS.mkdir(parents=True, exist_ok=True)
        draft = _file(name, arm).with_suffix(".draft")
        draft.write_text("[" + ",\n".join(json.dumps(found._asdict()) for found in known.values()) + "]\n")
        draft.replace(_file(name, arm))  # as a whole or not at all

    for factor in FACTORS:
        ran(factor, SEEDS[0])
    for seed in SEEDS[1:]:
        ran(best(list(known.values())), seed)
    return list(known.values())


def best(runs: list[Run]) -> float:
    """The factor with the lowest loss on what is held out, on the first seed."""
    return min((found for found in runs if found.seed == SEEDS[0]), key=lambda found: found.held_out).factor


def read(name: str, arm: str) -> list[Run]:
    """What is stored."""
    file = _file(name, arm)
    return [Run(**found) for found in json.loads(file.read_text())] if file.exists() else []


def _file(name: str, arm: str) -> Any:
    word = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return RESULTS / f"{word}.{arm}.json"
