"""Vertical methods against iterations and bytes.

    python -m bench.vertical [--data a9a w8a mushrooms] [--loss squares logistic] [--arm egvfl ...] [--jobs 2]

Ridge and logistic regression on tables of LIBSVM, columns over five parties, a fifth of the people held out; the
relative gap (f(x) - f*) / (f(0) - f*), f* from the closed form or Newton's method. Every arm is run with each step of
one grid, in multiples of its safe default, and each factor of the constraint; of these the one counts that comes below
the goal with the fewest bytes, and the safe default is told beside it. Bytes are the exact lengths of all messages but
evaluations. What is measured already is not measured again.

One file for each run is stored in bench/cells/vertical.

Needs FEDOPT_DATA with libsvm/a9a, libsvm/w8a and libsvm/mushrooms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from bench.processes import ROOT
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.compressed import bare
from fedopt.engine import evaluate
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.record import traffic
from fedopt.engine.serial import Serial
from fedopt.vfl.owner import owner

DATA = {"a9a": 123, "w8a": 300, "mushrooms": 112}
LOSSES = ("squares", "logistic")
PARTIES = 5
L2 = 1e-2
GOAL = 1e-4
FAR = 1e3
"""A gap at which a run is given up."""
EVERY = 1.08
"""The gap is looked at after so many times as many iterations as the time before, or one more."""
RESULTS = ROOT / "bench" / "cells" / "vertical"


class Arm(NamedTuple):
    """A method, the multiples of its safe step and the constraint factors that are tried, and its most iterations."""

    strategy: dict[str, Any]
    compression: dict[str, Any]
    step: str
    """The option that is the multiple."""
    safe: float
    multiples: tuple[float, ...]
    constraints: tuple[float, ...]
    most: int


GRID = (1.0, 3.0, 10.0, 20.0, 30.0)
"""Multiples of the safe step, a log grid for all arms; what diverges is given up soon."""
FEW = (1.0, 1.5, 2.0)
"""Of methods whose safe step is near the largest that works."""
S = (1.0, 0.3, 0.1)


def _reference(compression: dict[str, Any], most: int, safe: float = 0.5, **options: Any) -> Arm:
    return Arm({"name": "egvfl_reference", **options}, compression, "factor", safe, GRID, S, most)


def _randk(share: float) -> dict[str, Any]:
    return {"name": "randk", "share": share, "down": {"name": "randk", "share": share}}


ARMS: dict[str, Arm] = {
    "gd": Arm({"name": "vertical_gd"}, {}, "safety", 1.0, FEW, (1.0,), 4000),
    "agd": Arm({"name": "vertical_gd", "acceleration": "nesterov"}, {}, "safety", 1.0, (1.0, 1.5), (1.0,), 2000),
    "gd, randk 10 %": Arm(
        {"name": "vertical_gd"}, _randk(0.1), "safety", 1.0, (1.0, 0.3, 0.1, 0.03, 0.01, 0.003), (1.0,), 6000
    ),
    "gd, randk 2 %": Arm(
        {"name": "vertical_gd"}, _randk(0.02), "safety", 1.0, (0.1, 0.03, 0.01, 0.003, 0.001), (1.0,), 6000
    ),
    "egvfl": Arm({"name": "egvfl"}, {}, "safety", 0.9, FEW, (1.0, 0.3, 0.1, 0.03), 3000),
    "egvfl, augmented": Arm({"name": "egvfl", "form": "augmented"}, {}, "safety", 0.9, FEW, S, 3000),
    "egvfl, dual": Arm({"name": "egvfl", "form": "dual"}, {}, "safety", 0.9, FEW, S, 3000),
    "egvfl, split": Arm({"name": "egvfl", "form": "split"}, {}, "safety", 0.9, FEW, S, 3000),
    "randk 10 %": _reference(_randk(0.1), 8000),
    "randk 2 %": _reference(_randk(0.02), 12000),
    "randk 1 %": _reference(_randk(0.01), 16000),
    "permk": _reference({"name": "permk", "n": PARTIES}, 4000),
    "quantised": _reference({"name": "qsgd", "levels": 1, "down": {"name": "qsgd", "levels": 1}}, 6000),
    "topk 5 %, ef14": _reference(
        {"name": "topk", "share": 0.05, "down": {"name": "topk", "share": 0.05}, "feedback": {"name": "ef14"}},
        8000,
        safe=0.25,
    ),
    "one party": _reference({}, 6000, take=1),
    "2 % of the people": _reference({}, 12000, rows=0.02),
    "half of the features": _reference({}, 6000, features=0.5),
}


class Point(NamedTuple):
    """Where a run is."""

    iteration: int
    floats: int
    bytes: int
    gap: float


def document(data: str, loss: str, arm: Arm, multiple: float, constraint: float) -> dict[str, Any]:
    """The experiment of one cell of the grid, as a config."""
    strategy = {**arm.strategy, "loss": loss, "l2": L2, arm.step: arm.safe * multiple}
    if arm.strategy["name"] != "vertical_gd":
        strategy["constraint"] = constraint
    return {
        "run": {"rounds": 10**6, "seed": 1, "dtype": "float32"},
        "data": {"name": "libsvm", "file": f"libsvm/{data}", "features": DATA[data], "clients": PARTIES},
        "model": {"name": "logistic", "bias": False},
        "strategy": strategy,
        **({"compression": arm.compression} if arm.compression else {}),
        "executor": {"name": "serial"},
    }


@lru_cache(maxsize=1)
def _federation(data: str) -> Any:
    """The columns of five parties, the same for all arms."""
    config = configs.load(document(data, "squares", ARMS["egvfl"], 1.0, 1.0))
    return setups.build(config).problem.data


@lru_cache(maxsize=1)
def optimum(data: str, loss: str) -> tuple[float, float]:
    """(f*, f(0)) of the whole table at one place."""
    x = _federation(data).splits["train"].x.double()
    people = x.shape[0] // PARTIES
    a = np.concatenate([x[i * people : (i + 1) * people].numpy() for i in range(PARTIES)], axis=1)
    t = 2.0 * _federation(data).server["train"].y.double().numpy() - 1.0
    w = np.zeros(a.shape[1])
    for _ in range(60):  # Newton's method; one step for squares
        z = a @ w
        if loss == "squares":
            slope, curve = z - t, np.ones_like(z)
        else:
            p = 1.0 / (1.0 + np.exp(t * z))
            slope, curve = -t * p, p * (1.0 - p)
        gradient = a.T @ slope / people + L2 * w
        if np.linalg.norm(gradient) < 1e-13:
            break
        w -= np.linalg.solve((a.T * curve) @ a / people + L2 * np.eye(len(w)), gradient)

    def f(z: np.ndarray, w: np.ndarray) -> float:
        each = 0.5 * (z - t) ** 2 if loss == "squares" else np.logaddexp(0.0, -t * z)
        return float(each.mean() + 0.5 * L2 * w @ w)

    return f(a @ w, w), f(np.zeros(people), 0.0 * w)


def run(data: str, loss: str, name: str, multiple: float, constraint: float) -> dict[str, Any]:
    """One cell of the grid."""
    torch.set_num_threads(1)
    arm = ARMS[name]
    config = configs.load(document(data, loss, arm, multiple, constraint))
    setup = setups.build(config, data=_federation(data))
    problem, strategy = setup.problem, setup.strategy
    least, first = optimum(data, loss)
    holder = owner(problem, loss, True)
    key, executor = keys.root(1), Serial()
    programs = strategy.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    everybody = torch.arange(problem.clients)
    x = problem.data.splits["train"].x.unflatten(0, (PARTIES, -1)).double()
    points, sent, floats, look, started = [], 0, 0, 1, time.perf_counter()
    for step in exchanges(problem, strategy, executor, setup.adversary, memory, state, key):
        down, up = traffic(step, setup.codec)
        sent += int(down.sum() + up.sum())
        floats += _floats(step)
        if step.state.round < look:
            continue
        look = max(look + 1, math.ceil(look * EVERY))
        weights = memory.of(everybody)["weights"].double()
        z = torch.einsum("nmd,nd->m", x, weights)
        value = float(holder.value(holder.k * z)) + 0.5 * L2 * float(weights.square().sum())
        gap = (value - least) / (first - least)
        points.append(Point(step.state.round, floats, sent, gap))
        if gap <= GOAL or not gap < FAR or step.state.round >= arm.most:
            break
    found = evaluate.on_parties(problem, bare(strategy), programs, executor, memory, step.state, key)
    return {
        "data": data, "loss": loss, "arm": name, "multiple": multiple, "constraint": constraint, "l2": L2,
        "points": points, "reached": points[-1].gap <= GOAL, "accuracy": found.get("accuracy"),
        "step": step.state.step, "seconds": time.perf_counter() - started, "people": int(holder.targets.shape[0]),
    }  # fmt: skip


def _floats(step: Any) -> int:
    """Numbers in all messages of an exchange before they are compressed to fewer bits: what a paper would count."""
    exchange, replies = step.replies.exchange, step.replies
    asked = exchange.clients.numel()
    down = sum(v.numel() for v in exchange.down.values()) * asked + sum(v.numel() for v in exchange.own.values())
    rows = sum(v[0].numel() for v in replies.vectors.values())
    return int(down + rows * replies.clients.numel())


def cells(data: list[str], losses: list[str], arms: list[str]) -> Iterator[tuple[str, str, str, float, float]]:
    """The whole grid."""
    for table, loss, name in itertools.product(data, losses, arms):
        for multiple, constraint in itertools.product(ARMS[name].multiples, ARMS[name].constraints):
            yield table, loss, name, multiple, constraint


def stored(cell: tuple[str, str, str, float, float]) -> Path:
    """The file of a cell."""
    data, loss, name, multiple, constraint = cell
    word = "".join(letter if letter.isalnum() else "-" for letter in name)
    return RESULTS / f"{data}.{loss}.{word}.{multiple:g}.{constraint:g}.json"


def main() -> None:
    """Measure what is not measured."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    arguments.add_argument("--loss", nargs="*", default=list(LOSSES), choices=LOSSES)
    arguments.add_argument("--arm", nargs="*", default=list(ARMS), choices=list(ARMS))
    arguments.add_argument("--jobs", type=int, default=2)
    given = arguments.parse_args()
    console = Console()
    RESULTS.mkdir(parents=True, exist_ok=True)
    wanted = [cell for cell in cells(given.data, given.loss, given.arm) if not stored(cell).exists()]
    console.print(f"{len(wanted)} runs to do")
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(run, *cell): cell for cell in wanted}
        for number, done in enumerate(as_completed(running), 1):
            cell, found = running[done], done.result()
            stored(cell).write_text(json.dumps(found) + "\n")
            last = Point(*found["points"][-1])
            console.print(
                f"{number:4d} {' '.join(map(str, cell)):60} gap {last.gap:8.1e} after {last.iteration:6d},"
                f" {last.bytes / 1e6:9.1f} MB, {found['seconds']:.0f} s"
            )


if __name__ == "__main__":
    main()
