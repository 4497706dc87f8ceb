"""Vertical training of networks against the same network in one place.

    python -m bench.vertical.nets [--task mnist-halves mnist-quarters leads] [--seeds 1 2 3]

Handwritten digits cut into halves and quarters of their columns, and heart beats whose two leads are with two parties.
Bottom networks of one hidden layer, whose outputs are added up: by split learning, by extragradient on the saddle form
(heuristic for networks), and trained in one place by torch's own SGD on batches drawn in the same way; beside them one
network of the same size on everything, and one on each party's own features. Accuracy and macro-F1 on held-out people.

Figures are stored in bench/cells/vertical-nets.json. Needs FEDOPT_DATA with mnist10k/ and mitdb/, and wfdb.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bench.vertical import page
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.compressed import bare
from fedopt.engine import evaluate
from fedopt.engine.evaluate import scores
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory

MNIST = {
    "name": "idx",
    "images": "mnist10k/t10k-images-idx3-ubyte.gz",
    "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
    "vertical": {"name": "even", "normalise": "none"},
}
BEATS = {
    "name": "ecg",
    "folder": "mitdb",
    "leads": "both",
    "decimate": 4,
    "vertical": {"name": "even", "axis": 1, "normalise": "none"},
}
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "mnist-halves": (MNIST, 2),
    "mnist-quarters": (MNIST, 4),
    "leads": (BEATS, 2),
}
HIDDEN = 64
BATCH, LR, MOMENTUM = 64, 0.05, 0.9
BATCHES = {"mnist-halves": 3000, "mnist-quarters": 3000, "leads": 6000}
ITERATIONS = {"mnist-halves": 600, "mnist-quarters": 600, "leads": 2000}
EXTRAGRADIENT = {"name": "egvfl", "l2": 0.0, "step": 0.3, "constraint": 0.1, "step_x": 3.0}
"""With a weak constraint the multipliers follow the gradient late, which does to a network what momentum does."""


def document(task: str, strategy: dict[str, Any], rounds: int, seed: int) -> dict[str, Any]:
    """The experiment as a config."""
    data, parties = TASKS[task]
    return {
        "run": {"rounds": rounds, "seed": seed},
        "data": {**data, "clients": parties},
        "model": {"name": "mlp", "hidden": [HIDDEN]},
        "strategy": {"loss": "softmax", **strategy},
        "executor": {"name": "serial", "threads": torch.get_num_threads()},
    }


def federated(task: str, strategy: dict[str, Any], rounds: int, seed: int) -> dict[str, Any]:
    """By parties."""
    setup = setups.build(configs.load(document(task, strategy, rounds, seed)))
    problem, method = setup.problem, setup.strategy
    programs = method.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    state = method.init(problem, keys.fold(setup.key, "init"))
    steps = exchanges(problem, method, setup.executor, setup.adversary, memory, state, setup.key)
    while state.round < rounds:
        state = next(steps).state
    return evaluate.on_parties(problem, bare(method), programs, setup.executor, memory, state, setup.key)


class Sum(nn.Module):
    """Bottom networks of all parties in one place; x is a tuple of their features."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
            for width in widths
        )

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        out: Tensor = sum(part(one) for part, one in zip(self.parts, x, strict=True))
        return out


def central(task: str, looked: Sequence[int] | None, rounds: int, seed: int) -> dict[str, Any]:
    """In one place, with a bottom network for each of the parties looked at; None: one network on everything."""
    setup = setups.build(configs.load(document(task, {"name": "split_learning", "batch_size": BATCH}, rounds, seed)))
    data, n = setup.problem.data, setup.problem.clients
    blocks = {
        name: [held.x[int(held.offsets[i]) : int(held.offsets[i + 1])].flatten(1) for i in range(n)]
        for name, held in data.splits.items()
    }
    torch.manual_seed(seed)
    if looked is None:
        blocks = {name: [torch.cat(parts, dim=1)] for name, parts in blocks.items()}
        looked = [0]
    module = Sum([blocks["train"][i].shape[1] for i in looked], data.classes)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
    y, people = data.server["train"].y, len(data.server["train"].y)
    for _ in range(rounds):
        batch = torch.randperm(people)[:BATCH]
        loss = nn.functional.cross_entropy(module([blocks["train"][i][batch] for i in looked]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        predicted = module([blocks["test"][i] for i in looked]).argmax(dim=1)
    truth, classes = data.server["test"].y, data.classes
    confusion = torch.bincount(truth * classes + predicted, minlength=classes * classes)
    return scores(confusion.reshape(classes, classes), data.class_names)


def arms(task: str) -> dict[str, Callable[[int], dict[str, Any]]]:
    """What is compared, each by seed."""
    rounds = BATCHES[task]
    split = {"name": "split_learning", "batch_size": BATCH, "lr": LR, "momentum": MOMENTUM}
    several = {**split, "steps": 4, "lr": LR / 4}
    found: dict[str, Callable[[int], dict[str, Any]]] = {
        "the same network in one place": lambda seed: central(task, range(TASKS[task][1]), rounds, seed),
        "one network on everything": lambda seed: central(task, None, rounds, seed),
        "split learning": lambda seed: federated(task, split, rounds, seed),
        "split learning, 4 local steps": lambda seed: federated(task, several, rounds, seed),
        "egvfl": lambda seed: federated(task, EXTRAGRADIENT, ITERATIONS[task], seed),
    }
    for party in range(TASKS[task][1]):
        found[f"party {party} alone"] = partial(central, task, [party], rounds)
    return found


def main() -> None:
    """Run what is not stored."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    arguments.add_argument("--arm", nargs="*")
    given = arguments.parse_args()
    console = Console()
    stored = json.loads(page.NETS.read_text()) if page.NETS.exists() else {}
    for task in given.task:
        for name, arm in arms(task).items():
            if given.arm and name not in given.arm:
                continue
            each = stored.setdefault(task, {}).setdefault(name, {})
            for seed in given.seeds:
                if str(seed) in each:
                    continue
                started = time.perf_counter()
                found = arm(seed)
                each[str(seed)] = {
                    "accuracy": found["accuracy"],
                    "macro_f1": found["macro_f1"],
                    "seconds": time.perf_counter() - started,
                }
                page.NETS.write_text(json.dumps(stored, indent=1) + "\n")
            for figure in ("accuracy", "macro_f1"):
                values = [run[figure] for run in each.values()]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                console.print(f"{task} {name}: {figure} {statistics.mean(values):.4f} ± {spread:.4f}")
    page.write()


if __name__ == "__main__":
    main()
