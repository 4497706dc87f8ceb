"""SOS: a fixed point within a factor 2, in few runs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fedopt.optimizers import sos
from fedopt.types import FedoptError
from tests.optimizers.test_alias import PROBLEM

STEPS = 100


def phi(gamma: float, least: float = 1e-12) -> float:
    """By the definition, with everything kept."""
    x, points = PROBLEM.start, []
    slopes = []
    for _ in range(STEPS + 1):
        g = PROBLEM({"x": x})[0]["x"]
        points.append(x)
        slopes.append(g)
        x = x - gamma * g.sign()
    sums = [sum(gamma * float(slopes[i + 1] @ slopes[i].sign()) for i in range(t)) for t in range(STEPS + 1)]
    rough = sum(
        float((slopes[i + 1] - slopes[i]).abs().sum()) / float((points[i + 1] - points[i]).abs().max())
        for i in range(STEPS)
    )
    return math.sqrt(max(least, *sums) / rough)


def test_the_step_is_within_a_factor_of_two_of_a_fixed_point() -> None:
    found = sos(PROBLEM, {"x": PROBLEM.start}, STEPS)
    low, high = found.bracket
    assert low < high <= 2.0 * low and found.gamma in (low, high)
    assert phi(low) > low and phi(high) <= high
    x = PROBLEM.start
    for _ in range(STEPS):
        x = x - found.gamma * PROBLEM({"x": x})[0]["x"].sign()
    torch.testing.assert_close(found.params["x"], x, rtol=0, atol=1e-12)


def test_runs_grow_as_the_logarithm_of_the_logarithm() -> None:
    runs = [sos(PROBLEM, {"x": PROBLEM.start}, STEPS, smallest=10.0**-p).runs for p in (4, 8, 16, 32)]
    # each squaring of the distance to the fixed point adds a run of squaring, and one or two of bisection
    assert all(b - a <= 3 for a, b in itertools.pairwise(runs)) and runs[-1] <= 16


def test_it_is_as_good_as_the_best_of_a_grid_within_a_factor_of_two() -> None:
    def norm(gamma: float) -> float:
        x, total = PROBLEM.start, 0.0
        for _ in range(STEPS):
            g = PROBLEM({"x": x})[0]["x"]
            total += float(g.abs().sum()) / STEPS
            x = x - gamma * g.sign()
        return total

    best = min(norm(10.0 ** (k / 4)) for k in range(-16, 3))
    found = sos(PROBLEM, {"x": PROBLEM.start}, STEPS)
    assert found.norm == pytest.approx(norm(found.gamma), rel=1e-9)
    assert found.norm <= 2.0 * best


def test_bad_input_by_message() -> None:
    with pytest.raises(FedoptError, match="steps >= 1"):
        sos(PROBLEM, {"x": PROBLEM.start}, 0)
    with pytest.raises(FedoptError, match="too large already"):
        sos(PROBLEM, {"x": PROBLEM.start}, STEPS, smallest=0.9)
    with pytest.raises(FedoptError, match="no minimum"):
        sos(lambda x: ({"x": torch.ones(2)}, -x["x"].sum()), {"x": torch.zeros(2)}, 3)
