"""The grid: what is compared, one run, and the search for the best step and factor of the constraint.

Ridge and logistic regression on tables of LIBSVM, columns over five parties, a fifth of the people held out; the
relative gap (f(x) - f*) / (f(0) - f*), f* by Newton's method. Every arm is run with its safe default, then for each
factor of the constraint with the steps of one grid, in multiples of the safe one, from the largest down until one is
worse than a larger one (four in a row, where noise decides which of two is worse); of all these the one counts that
comes to the goal with the fewest bytes. A run ends at the goal, when it diverges, after the most iterations of its arm,
or after more bytes than another run of its arm needed to come there. Bytes are the exact lengths of all messages but
those of evaluations; those of the power iteration, by which the safe default finds its step, are kept apart.

A file for each arm is stored in bench/cells/vertical.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.processes import ROOT
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.compressed import NBYTES, bare
from fedopt.engine import evaluate
from fedopt.engine.loop import Step, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.record import traffic
from fedopt.types import Codec
from fedopt.vfl.owner import owner

DATA = {"a9a": 123, "w8a": 300, "mushrooms": 112}
"""Tables, and their columns."""
LOSSES = ("squares", "logistic")
PARTIES = 5
L2 = 1e-2
GOAL = 1e-4
FAR = 30.0
"""A gap at which a run is given up."""
EVERY = 1.04
"""The gap is looked at after so many times as many iterations as the time before, or one more."""
RESULTS = ROOT / "bench" / "cells" / "vertical"


GRID = tuple(2.0 ** (k / 2) for k in range(13, -25, -1))
"""Multiples of the safe step, the largest first; for logistic regression every second one, the safe step among them."""
S = (1.0, 0.3, 0.1, 0.03)
"""Factors of the constraint."""


class Arm(NamedTuple):
    """A method, the option that is the multiple and its safe value, and the most iterations."""

    strategy: dict[str, Any]
    compression: dict[str, Any]
    step: str
    safe: float
    most: int

    @property
    def patience(self) -> int:
        """How many steps in a row have to be worse before no smaller one is tried."""
        return 4 if self.strategy["name"] == "vertical_gd" and self.compression else 1

    @property
    def constraints(self) -> tuple[float, ...]:
        return (1.0,) if self.strategy["name"] == "vertical_gd" else S


def _minimised(compression: dict[str, Any], most: int, **options: Any) -> Arm:
    return Arm({"name": "vertical_gd", **options}, compression, "safety", 1.0, most)


def _saddle(form: str) -> Arm:
    return Arm({"name": "egvfl", "form": form}, {}, "safety", 0.9, 2000)


def _reference(compression: dict[str, Any], most: int, safe: float = 0.5, **options: Any) -> Arm:
    return Arm({"name": "egvfl_reference", **options}, compression, "factor", safe, most)


def _both(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, **options, "down": {"name": name, **options}}


ARMS: dict[str, Arm] = {
    "gd": _minimised({}, 3000),
    "agd": _minimised({}, 2000, acceleration="nesterov"),
    "gd, randk 10 %": _minimised(_both("randk", share=0.1), 6000),
    "gd, randk 2 %": _minimised(_both("randk", share=0.02), 6000),
    "egvfl": _saddle("lagrangian"),
    "egvfl, augmented": _saddle("augmented"),
    "egvfl, dual": _saddle("dual"),
    "egvfl, split": _saddle("split"),
    "randk 10 %": _reference(_both("randk", share=0.1), 5000),
    "randk 2 %": _reference(_both("randk", share=0.02), 5000),
    "randk 2 %, refresh 3 %": _reference(_both("randk", share=0.02), 5000, refresh=0.03),
    "randk 1 %": _reference(_both("randk", share=0.01), 5000),
    "randk 2 %, natural": _reference(
        _both("compose", first={"name": "randk", "share": 0.02}, then={"name": "natural"}), 5000
    ),
    "permk": _reference({"name": "permk", "n": PARTIES}, 3000),
    "quantised": _reference(_both("qsgd", levels=1), 5000),
    "topk 5 %, ef14": _reference({**_both("topk", share=0.05), "feedback": {"name": "ef14"}}, 5000, safe=0.25),
    "one party": _reference({}, 5000, take=1),
    "2 % of the people": _reference({}, 5000, rows=0.02),
    "half of the features": _reference({}, 3000, features=0.5),
}


class Point(NamedTuple):
    """Where a run is."""

    iteration: int
    floats: int
    bytes: int
    gap: float


class Cell(NamedTuple):
    """A run of the grid."""

    multiple: float
    constraint: float
    points: list[Point]
    ended: str
    """`goal`, `diverged`, `iterations`, or `bytes` where another one of its arm needs fewer."""
    power: int
    """Bytes of the power iteration for the safe step; a step that is tuned needs none, so points count without them."""
    accuracy: float
    """Of the held-out people, at the end."""
    step: float
    seconds: float


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
        "executor": {"name": "stacked"},
    }


@lru_cache(maxsize=1)
def _federation(data: str) -> Any:
    """The columns of five parties, the same for all arms."""
    config = configs.load(document(data, "squares", ARMS["egvfl"], 1.0, 1.0))
    return setups.build(config).problem.data


@lru_cache(maxsize=1)
def _double(data: str) -> torch.Tensor:
    """The parties' columns `[n, m, d]`."""
    return _federation(data).splits["train"].x.unflatten(0, (PARTIES, -1)).double()


@lru_cache(maxsize=2)
def optimum(data: str, loss: str) -> tuple[float, float]:
    """(f*, f(0)) of the whole table at one place."""
    a = np.concatenate(list(_double(data).numpy()), axis=1)
    people = len(a)
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


def run(data: str, loss: str, name: str, multiple: float, constraint: float, limit: float = math.inf) -> Cell:
    """One run; it ends when it has taken more bytes than the limit."""
    torch.set_num_threads(1)
    arm = ARMS[name]
    config = configs.load(document(data, loss, arm, multiple, constraint))
    setup = setups.build(config, data=_federation(data))
    problem, strategy, executor = setup.problem, setup.strategy, setup.executor
    least, first = optimum(data, loss)
    holder = owner(problem, loss, True)
    key = keys.root(1)
    programs = strategy.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    up_kept, down_kept = _kept(setup.codec), _kept(getattr(bare(strategy), "broadcast", None))
    everybody = torch.arange(problem.clients)
    x = _double(data)
    points, sent, floats, power, look, ended, started = [], 0, 0, 0, 1, "", time.perf_counter()
    for step in exchanges(problem, strategy, executor, setup.adversary, memory, state, key):
        down, up = traffic(step, setup.codec)
        nbytes = int(down.sum() + up.sum())
        if step.replies.exchange.program == "power":
            power += nbytes
            continue
        sent += nbytes
        floats += _floats(step, up_kept, down_kept)
        if step.state.round < look and sent <= limit:
            continue
        look = max(look + 1, math.ceil(look * EVERY))
        weights = memory.of(everybody)["weights"].double()
        z = torch.einsum("nmd,nd->m", x, weights)
        value = float(holder.value(holder.k * z)) + 0.5 * L2 * float(weights.square().sum())
        gap = (value - least) / (first - least)
        points.append(Point(step.state.round, floats, sent, gap))
        if gap <= GOAL:
            ended = "goal"
        elif not gap < FAR:
            ended = "diverged"
        elif sent > limit:
            ended = "bytes"
        elif step.state.round >= arm.most:
            ended = "iterations"
        if ended:
            break
    found = evaluate.on_parties(problem, bare(strategy), programs, executor, memory, step.state, key)
    return Cell(
        multiple, constraint, points, ended, power, float(found["accuracy"]), step.state.step,
        time.perf_counter() - started,
    )  # fmt: skip


def _floats(step: Step, up_kept: Callable[[int], int], down_kept: Callable[[int], int]) -> int:
    """Numbers in all messages of an exchange; of a compressed vector those that its code has: what a paper counts."""
    exchange, replies = step.replies.exchange, step.replies
    asked = exchange.clients.numel()
    down = sum(value.numel() for value in exchange.own.values())
    for name, value in exchange.down.items():
        down += asked * (down_kept(value.numel()) if name in exchange.coded else value.numel())
    up = 0
    for name, rows in replies.vectors.items():
        whole = rows[0].numel()
        up += up_kept(whole) if NBYTES + name in replies.metrics else whole
    return down + up * replies.clients.numel()


def _kept(codec: Codec | None) -> Callable[[int], int]:
    """How many numbers the code of a vector of some length has."""

    @lru_cache
    def numbers(numel: int) -> int:
        assert codec is not None
        offers = {"shared": keys.root(0), "rank": torch.tensor(0), "kept": codec.start(numel)}
        told = torch.arange(1.0, numel + 1.0)
        code = codec.compress(told, keys.root(0), **{name: offers[name] for name in codec.asks})
        if codec.kind == "contraction" or codec.name == "compose":  # whose zeros are not written
            return max(int(part.count_nonzero()) for part in code.values())
        return max(part.numel() for part in code.values())

    return numbers


def search(data: str, loss: str, name: str) -> list[Cell]:
    """All runs of an arm, the safe default first; what is stored is not run again."""
    known = {(cell.multiple, cell.constraint): cell for cell in read(data, loss, name)}

    def ran(multiple: float, constraint: float, limit: float) -> Cell:
        if (multiple, constraint) not in known:
            known[multiple, constraint] = run(data, loss, name, multiple, constraint, limit)
            RESULTS.mkdir(parents=True, exist_ok=True)
            text = ",\n".join(json.dumps(cell._asdict()) for cell in known.values())
            draft = _file(data, loss, name).with_suffix(".draft")
            draft.write_text(f"[{text}]\n")
            draft.replace(_file(data, loss, name))  # as a whole or not at all
        return known[multiple, constraint]

    ran(1.0, 1.0, math.inf)
    for constraint in sorted(ARMS[name].constraints):  # small ones mostly win, and bound what the others may take
        least, worse = (math.inf, math.inf), 0
        for multiple in GRID if loss == "squares" else GRID[1::2]:
            fewest = best(list(known.values()))
            last = ran(multiple, constraint, math.inf if fewest is None else fewest.points[-1].bytes)
            if last.ended == "diverged":
                continue
            cost = _cost(last)
            least, worse = min(least, cost), worse + 1 if cost > least else 0
            if worse == ARMS[name].patience:
                break
    return list(known.values())


def _cost(cell: Cell) -> tuple[float, float]:
    """Bytes to the goal, or else how far from it the run ended."""
    end = cell.points[-1]
    return (end.bytes, 0.0) if cell.ended == "goal" else (math.inf, end.gap)


def best(cells: Sequence[Cell]) -> Cell | None:
    """The one that came to the goal with the fewest bytes."""
    return min((cell for cell in cells if cell.ended == "goal"), key=lambda cell: cell.points[-1].bytes, default=None)


def read(data: str, loss: str, name: str) -> list[Cell]:
    """What is stored of an arm."""
    file = _file(data, loss, name)
    stored = json.loads(file.read_text()) if file.exists() else []
    return [Cell(**{**cell, "points": [Point(*point) for point in cell["points"]]}) for cell in stored]


def _file(data: str, loss: str, name: str) -> Path:
    word = "".join(letter if letter.isalnum() else "-" for letter in name)
    return RESULTS / f"{data}.{loss}.{word}.json"
