"""Quadratics under methods of data similarity, in float64, and what a run of them cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.setup import Setup
from fedopt.similarity.asking import Asking

NODES = {"mu": 0.1, "delta": 2.07}


class Run(NamedTuple):
    """Where a run ended."""

    state: Asking
    gap: float
    """(h(x) - h*) / (h(0) - h*)"""
    distance: float
    """‖x - x*‖² / ‖x*‖²"""
    floor: float
    """Mean gap of the second half of the rounds."""


def experiment(
    strategy: dict[str, Any], data: dict[str, Any], compression: dict[str, Any] | None = None, **run: Any
) -> Setup:
    """The method on `quadratics`."""
    document = {
        "run": {"rounds": 10**6, "seed": 1, "dtype": "float64", **run},
        "data": {"name": "quadratics", **data},
        "model": {"name": "quadratic", "loss": "value"},
        "strategy": strategy,
        "executor": {"name": "stacked"},
    }
    return setups.build(configs.load(document | ({"compression": compression} if compression else {})))


def nodes(name: str, seed: int = 0, compression: dict[str, Any] | None = None, **options: Any) -> Setup:
    """Problem A: 20 nodes of similarity about 2."""
    known = {"mu": 0.1, "smooth": 100.0} if name == "agd" else NODES
    return experiment({"name": name, **known, **options}, {"kind": "nodes", "seed": seed}, compression)


def groups(name: str, delta_f: float, delta_g: float, seed: int = 0, **options: Any) -> Setup:
    """Problem B: f and g of given similarity."""
    known = {"delta": delta_f + delta_g} if name == "aeg" else {"delta_f": delta_f, "delta_g": delta_g}
    return experiment(
        {"name": name, "mu": 0.1, "rare": [1], **known, **options},
        {"kind": "groups", "delta_f": delta_f, "delta_g": delta_g, "seed": seed},
    )


def solution(setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """(A, b, x*) of the whole objective."""
    samples = setup.problem.data.splits["train"].x
    whole = samples.sum(dim=0) if samples.shape[0] == 2 else samples.mean(dim=0)
    a, b = whole[:, :-1], whole[:, -1]
    return a, b, torch.linalg.solve(a, b)


def play(setup: Setup, gap: float = 0.0, distance: float = 0.0, rounds: int = 200_000) -> Run:
    """Run until the gap or the distance is reached, or for so many rounds."""
    a, b, x = solution(setup)
    least = float(0.5 * x @ a @ x - b @ x)
    problem, strategy, key = setup.problem, setup.strategy, keys.root(1)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    gaps = []
    for step in exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, key):
        model = strategy.model(problem, step.state)
        assert model is not None
        w = model["params"]
        here = (float(0.5 * w @ a @ w - b @ w) - least) / -least
        far = float((w - x).square().sum() / x.square().sum())
        gaps.append(here)
        if here <= gap or far <= distance or step.state.round >= rounds or not here < 1e8:
            return Run(
                getattr(step.state, "inner", step.state),
                here,
                far,
                sum(gaps[len(gaps) // 2 :]) / (len(gaps) - len(gaps) // 2),
            )
    raise AssertionError("a loop without an end ended")
