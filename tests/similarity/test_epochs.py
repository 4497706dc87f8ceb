"""Whole epochs, replayed by a plain loop that is told the lengths and who was asked, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedopt import keys
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.setup import Setup
from fedopt.similarity.epochs import geometric
from tests.similarity.quadratics import experiment, groups
from tests.similarity.test_oracles import MU, Known

THETA = 0.05


def watched(setup: Setup, rounds: int) -> tuple[list[tuple[str, Any, list[int], int]], np.ndarray]:
    """(phase, part, clients, steps left afterwards) of every exchange, and the published model at the end."""
    problem, strategy, key = setup.problem, setup.strategy, keys.root(1)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    seen = []
    for step in exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, key):
        seen.append((state.own.phase, step.info["group"], step.replies.clients.tolist(), step.state.own.left))
        state = step.state
        if state.round >= rounds:
            return seen, state.params.numpy()
    raise AssertionError


def top(v: np.ndarray, count: int) -> np.ndarray:
    kept = np.zeros_like(v)
    best = np.argsort(-np.abs(v), kind="stable")[:count]
    kept[best] = v[best]
    return kept


def replayed(setup: Setup, seen: list[tuple[str, Any, list[int], int]], kind: str, q: float, k: float | None) -> Any:
    """What the same questions lead to."""
    h = Known(setup)
    m = len(h.nodes)
    own = [lambda x, i=i: h.own[i][0] @ x - h.own[i][1] for i in range(len(h.own))]
    whole = h.total if kind == "groups" else h.mean
    x = w = y = z = h.zero
    e = np.zeros((m, h.d))
    ends = 2 if kind == "groups" else 1
    waiting, ended = 0, h.zero
    for phase, part, clients, left in seen:
        if phase == "anchor":
            waiting += 1
            if waiting == ends:
                waiting, x = 0, w
                e[:] = 0.0
            continue
        if phase == "inner":
            if kind == "groups":
                i = "fg".index(part)
                moved = (h.gradient(i, x) - own[i](x)) - (h.gradient(i, w) - own[i](w))
                estimate = moved / (q if part == "f" else 1 - q)
            elif kind == "client":
                (i,) = clients
                estimate = (h.gradient(i, x) - h.home(x)) - (h.gradient(i, w) - h.home(w))
            else:
                each = [(h.gradient(i, x) - h.home(x)) - (h.gradient(i, w) - h.home(w)) for i in range(m)]
                sent = []
                for i, d in enumerate(each):
                    c = top(e[i] + d, 3) if kind == "topk" else d
                    e[i] += d - c
                    sent.append(c)
                estimate = np.mean(sent, axis=0)
            x = h.prox(estimate + whole(w) - h.home(w), x, THETA)
            if left == 0:
                y, ended = x, x
                if k is None:
                    w = x
            continue
        waiting += 1
        if waiting < ends:
            continue
        waiting = 0
        ended = y - THETA * e.mean(axis=0) if kind == "topk" else y
        tau = min(math.sqrt(MU * THETA / q) / k, 1 / k)
        alpha = THETA / (2 * k * q * tau)
        g = q * ((h.home(w) - whole(w)) - (h.home(y) - whole(y)) + (w - ended) / THETA)
        z = (z / alpha + MU * y - g) / (1 / alpha + MU)
        w = tau * z + (1 - tau) * y
    return y if k is not None else x


@pytest.mark.parametrize("name", ["vrcs", "acc_vrcs"])
def test_one_group_at_a_time(name: str) -> None:
    q = 0.3
    setup = groups(name, 0.5, 2.0, theta=THETA, probability=q)
    seen, found = watched(setup, 60)
    assert {part for phase, part, _, _ in seen if phase == "inner"} == {"f", "g"}
    wanted = replayed(setup, seen, "groups", q, None if name == "vrcs" else 4.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["svrs", "acc_svrs"])
def test_one_client_at_a_time(name: str) -> None:
    setup = experiment({"name": name, "mu": MU, "delta": 2.0, "theta": THETA}, {"kind": "nodes", "nodes": 5})
    seen, found = watched(setup, 50)
    assert len({tuple(clients) for phase, _, clients, _ in seen if phase == "inner"}) > 2
    wanted = replayed(setup, seen, "client", 0.2, None if name == "svrs" else 4.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize(("name", "kind", "k"), [("olga", "none", 4.0), ("ef_olga", "topk", 18.0)])
def test_compressed_differences(name: str, kind: str, k: float) -> None:
    compression = {"name": "topk", "count": 3, "feedback": "ef14"} if kind == "topk" else None
    setup = experiment(
        {"name": name, "mu": MU, "delta": 2.0, "theta": THETA, "probability": 0.25},
        {"kind": "nodes", "nodes": 4},
        compression,
    )
    seen, found = watched(setup, 60)
    assert sum(phase == "end" for phase, *_ in seen) >= 5
    wanted = replayed(setup, seen, kind, 0.25, k)
    # what is sent is rounded to float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=(1e-5 if kind == "topk" else 1e-9) * np.abs(wanted).max())


def test_lengths_follow_the_geometric_law() -> None:
    drawn = np.array([geometric(keys.fold(keys.root(0), i), 0.2) for i in range(4000)])
    assert drawn.min() == 1
    assert abs(drawn.mean() - 5.0) < 0.25
    assert abs((drawn == 1).mean() - 0.2) < 0.03
    assert geometric(keys.root(0), 1.0) == 1
