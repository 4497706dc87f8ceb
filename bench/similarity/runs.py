"""One run of a method on a task: the gap against each counter of communication. Stored in bench/cells/similarity."""

from __future__ import annotations

import json
import math
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.processes import ROOT
from bench.similarity import cases
from bench.similarity.cases import Task
from fedopt import keys
from fedopt.compressed import NBYTES
from fedopt.engine.loop import Step, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.record import traffic
from fedopt.problem import LOSSES

GOAL = 1e-6
FAR = 1e3
"""A gap at which a run is given up."""
EVERY = 1.04
"""The gap is looked at after so many times as many rounds as the time before, or one more; up to 100 every time."""
RESULTS = ROOT / "bench" / "cells" / "similarity"


class Point(NamedTuple):
    """Where a run is."""

    rounds_f: int
    """CC-1, with the first group."""
    rounds_g: int
    messages: int
    """CC-2"""
    time: float
    """CC-3: the longest answer of each round, in whole vectors."""
    bytes: int
    gap: float


class Cell(NamedTuple):
    """A run."""

    points: list[Point]
    ended: str
    """`goal`, `rounds`, or `diverged`."""
    constants: dict[str, float]
    seconds: float


def objective(task: Task) -> tuple[Any, float]:
    """(the objective as a function of parameters `[d]`, l2)."""
    shards = cases.federation(task).splits["train"]
    l2 = cases.smoothness(task) / cases.CONDITION
    held, owner = shards.sizes, torch.repeat_interleave(torch.arange(shards.clients), shards.sizes)
    x, y = shards.x[shards.index].double(), shards.y
    if task.groups == "beats":
        apart = y != cases.federation(task).class_names.index("N")
        weights = torch.zeros(len(y), dtype=torch.float64)
        for mine in (apart, ~apart):
            count = torch.bincount(owner[mine], minlength=shards.clients).double()
            weights[mine] = 1.0 / count[owner[mine]] / float((count > 0).sum())
    elif task.groups == "columns":
        rare = torch.isin(owner, torch.tensor(cases.rare(task)))
        few = len(cases.rare(task))
        weights = torch.where(rare, 1.0 / few, 1.0 / (shards.clients - few)) / held[owner].double()
    else:
        weights = 1.0 / held[owner].double() / shards.clients
    classes = len(cases.federation(task).class_names) if task.loss == "cross_entropy" else 1
    labels = y if task.loss == "cross_entropy" else y.double()

    def value(w: Tensor) -> Tensor:
        outputs = x @ w.reshape(classes, -1).T
        return (weights * LOSSES[task.loss](outputs, labels)).sum() + 0.5 * l2 * w @ w

    return value, l2


@lru_cache(maxsize=1)
def optimum(task: Task) -> float:
    """h*, by L-BFGS in float64 until the gradient does not get smaller."""
    value, _ = objective(task)
    classes = len(cases.federation(task).class_names) if task.loss == "cross_entropy" else 1
    w = torch.zeros(
        classes * cases.federation(task).splits["train"].x.shape[1], dtype=torch.float64, requires_grad=True
    )
    solver = torch.optim.LBFGS(
        [w], max_iter=2000, history_size=50, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = value(w)
        loss.backward()
        return loss

    solver.step(closure)
    return float(value(w.detach()))


def run(task: Task, name: str) -> Cell:
    """One run."""
    torch.set_num_threads(1)
    setup = cases.setup(task, name)
    most = (cases.TWO if task.groups else cases.SINGLE)[name].most
    problem, strategy = setup.problem, setup.strategy
    value, _ = objective(task)
    least = optimum(task)
    first = float(value(torch.zeros(problem.d, dtype=torch.float64))) - least
    start = {name: torch.zeros_like(v) for name, v in problem.initial.items()}
    problem = problem._replace(initial=start)
    key = keys.root(1)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    points: list[Point] = []
    nbytes, plain, look, ended, started = 0, [0, 0, 0.0], 1, "", time.perf_counter()
    for number, step in enumerate(exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, key), 1):
        down, up = traffic(step, setup.codec)
        nbytes += int(down.sum() + up.sum())
        _count(plain, step)
        if number < look:
            continue
        look = max(look + 1, math.ceil(look * EVERY)) if look > 100 else look + 1
        model = strategy.model(problem, step.state)
        assert model is not None
        gap = (float(value(model["params"])) - least) / first
        counted = getattr(step.state, "counted", None)
        told = (plain[0], 0, plain[1], plain[2]) if counted is None else tuple(counted)
        points.append(Point(*told, nbytes, gap))
        ended = "goal" if gap <= GOAL else "diverged" if not gap < FAR else "rounds" if number >= most else ""
        if ended:
            break
    constants = getattr(step.state, "constants", {})
    return Cell(points, ended, constants, time.perf_counter() - started)


def _count(plain: list[Any], step: Step) -> None:
    """Counters of a method that has none of its own: every answer is the model's length per vector."""
    replies = step.replies
    plain[0] += 1
    plain[1] += replies.exchange.clients.numel() + replies.clients.numel()
    plain[2] += sum(1.0 for name in replies.vectors if NBYTES + name not in replies.metrics)


def measured(task: Task, name: str) -> Cell:
    """The stored run, or a new one."""
    file = path(task, name)
    if not file.exists():
        cell = run(task, name)
        RESULTS.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(cell._asdict()) + "\n")
        draft.replace(file)  # as a whole or not at all
    found = read(task, name)
    assert found is not None
    return found


def read(task: Task, name: str) -> Cell | None:
    """What is stored."""
    file = path(task, name)
    if not file.exists():
        return None
    stored = json.loads(file.read_text())
    return Cell(**{**stored, "points": [Point(*point) for point in stored["points"]]})


def path(task: Task, name: str) -> Path:
    """Where a run is stored."""
    word = "".join(letter if letter.isalnum() else "-" for letter in name)
    return RESULTS / f"{task.word}.{word}.json"
