"""The geometric median against a loop, its optimality, and rows at any distance."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt.aggregators import build
from fedopt.aggregators.geometric_median import geometric_median
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) * (x - y) for x, y in zip(a, b, strict=True)))


def loop(rows: list[list[float]], weights: list[float], smoothing: float, iterations: int) -> list[float]:
    """The algorithm as published: from the weighted mean, a fixed number of times."""
    share = [w / sum(weights) for w in weights]
    z = [sum(a * row[j] for a, row in zip(share, rows, strict=True)) for j in range(len(rows[0]))]
    for _ in range(iterations):
        beta = [a / max(smoothing, distance(row, z)) for a, row in zip(share, rows, strict=True)]
        z = [sum(b * row[j] for b, row in zip(beta, rows, strict=True)) / sum(beta) for j in range(len(z))]
    return z


def objective(rows: list[list[float]], weights: list[float], z: list[float]) -> float:
    return sum(w * distance(row, z) for w, row in zip(weights, rows, strict=True)) / sum(weights)


def found(updates: Tensor, weights: Tensor | None = None, **options: float) -> Tensor:
    weights = torch.ones(updates.shape[0]) if weights is None else weights
    return geometric_median(**options).apply(updates, (), weights=weights)[0]  # type: ignore[arg-type]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(31)
    for _ in range(100):
        n, d = draw.randint(5, 12), draw.randint(2, 6)
        rows = [[draw.gauss(0, 2) for _ in range(d)] for _ in range(n)]
        weights = [float(draw.randint(1, 9)) for _ in range(n)]
        updates = torch.tensor(rows, dtype=torch.float64)
        # where the minimum is one of the rows, a little smoothing keeps the loop from creeping towards it
        got = found(updates, torch.tensor(weights), smoothing=0.1, tolerance=1e-12).tolist()
        assert distance(got, loop(rows, weights, 0.1, 400)) < 1e-6
        got = found(updates, torch.tensor(weights)).tolist()
        assert objective(rows, weights, got) <= objective(rows, weights, loop(rows, weights, 1e-6, 100)) + 1e-9


def test_each_iteration_is_one_step_of_the_loop() -> None:
    draw = random.Random(32)
    for _ in range(100):
        n, d = draw.randint(2, 9), draw.randint(1, 5)
        rows = [[draw.gauss(0, 2) for _ in range(d)] for _ in range(n)]
        updates = torch.tensor(rows, dtype=torch.float64)
        smoothing, number = draw.choice([0.3, 2.0, 100.0]), draw.randint(1, 6)
        z, after = (
            found(updates, smoothing=smoothing, iterations=number + more, tolerance=0.0).tolist() for more in (0, 1)
        )
        beta = [1.0 / max(smoothing, distance(row, z)) for row in rows]
        step = [sum(b * row[j] for b, row in zip(beta, rows, strict=True)) / sum(beta) for j in range(d)]
        assert after == pytest.approx(step, abs=1e-9)


def test_the_pull_of_all_rows_is_in_balance() -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        updates = torch.randn(15, 30, generator=generator, dtype=torch.float64)
        weights = torch.rand(15, generator=generator, dtype=torch.float64) + 0.5
        z = found(updates, weights, tolerance=1e-10)
        away = updates - z
        pull = (weights / weights.sum()) @ (away / away.norm(dim=1, keepdim=True))
        assert float(pull.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e3, 1e8, 1e16, 1e30])
def test_far_rows_pull_no_more_than_near_ones(dtype: torch.dtype, far: float) -> None:
    """Whatever the distance, only the direction of an attacker's row counts, and the search does not end early."""
    generator = torch.Generator().manual_seed(1)
    honest = torch.randn(7, 20, generator=generator, dtype=torch.float64)
    direction = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    updates = torch.cat([far * direction, honest]).to(dtype)
    z = found(updates, tolerance=1e-9).double()
    away = honest - z
    outward = (direction / direction.norm(dim=1, keepdim=True)).sum(0)
    balance = (away / away.norm(dim=1, keepdim=True)).sum(0) + outward
    assert float(balance.norm()) < (1e-2 if far < 1e8 else 1e-4)
    assert float(z.norm()) < 10.0


def test_a_row_with_more_than_half_of_the_weight_is_the_result() -> None:
    updates = torch.randn(6, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 7.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(found(updates, weights), updates[2], rtol=0.0, atol=1e-5)
    assert float((found(updates, weights, weighted=False) - updates[2]).norm()) > 0.1


def test_two_rows_of_equal_weight_meet_in_the_middle() -> None:
    updates = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(found(updates), updates.mean(0))


def test_on_a_line_it_is_the_median() -> None:
    updates = torch.tensor([[0.0], [1.0], [2.0], [30.0], [1e6]], dtype=torch.float64)
    assert found(updates, tolerance=1e-12).item() == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_equal_rows_are_returned(n: int) -> None:
    row = torch.randn(1, 30, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found(row.expand(n, 30)), row[0])


def test_a_row_without_weight_does_not_count() -> None:
    updates = torch.randn(7, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    updates[2] = 1e30
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0, 1.0, 2.0])
    rest = torch.tensor([0, 1, 3, 4, 5, 6])
    torch.testing.assert_close(found(updates, weights), found(updates[rest], weights[rest]), rtol=1e-5, atol=1e-5)


def test_trust_is_the_weights_of_the_mean() -> None:
    updates = torch.randn(9, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    updates[4] += 30.0
    z, _, info = geometric_median().apply(updates, (), weights=torch.ones(9))
    torch.testing.assert_close(info["trust"] @ updates, z)
    assert float(info["trust"].sum()) == pytest.approx(1.0)
    assert int(info["trust"].argmin()) == 4
    assert 1 < info["iterations"] < 200


@pytest.mark.parametrize("weights", [[0.0, 0.0], [2.0, -1.0], [1.0, float("nan")]])
def test_weights_without_a_positive_sum_are_refused(weights: list[float]) -> None:
    with pytest.raises(FedoptError, match="geometric_median needs weights >= 0 with a positive sum"):
        found(torch.ones(2, 3), torch.tensor(weights))


def test_options_out_of_range_are_refused() -> None:
    for option, value in (("smoothing", 0.0), ("iterations", 0), ("tolerance", -1.0)):
        with pytest.raises(ConfigError, match=rf"aggregator\.{option}: should be greater than"):
            build("geometric_median", {option: value})
    assert build("geometric_median", {}).admits(1) is None
