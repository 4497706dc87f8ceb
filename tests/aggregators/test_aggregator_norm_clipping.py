"""Norm clipping against a loop, its bounds, and what attackers can reach."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.norm_clipping import norm_clipping
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], weights: list[float], bound: float | str) -> list[float]:
    lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
    limit = statistics.median(lengths) if bound == "median" else float(bound)
    result = [0.0] * len(rows[0])
    for row, length, weight in zip(rows, lengths, weights, strict=True):
        factor = limit / length if length > limit else 1.0
        for j, x in enumerate(row):
            result[j] += weight * factor * x / sum(weights)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(91)
    for _ in range(100):
        n, d = draw.randint(1, 12), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        weights = [float(draw.randint(1, 40)) for _ in range(n)]
        bound: Any = draw.choice(["median", 0.5, 2.0])
        updates = torch.tensor(rows, dtype=torch.float64)
        got, _, info = norm_clipping(bound).apply(updates, (), weights=torch.tensor(weights))
        assert got.tolist() == pytest.approx(loop(rows, weights, bound), abs=1e-12)
        torch.testing.assert_close(info["trust"] @ updates, got)


def test_within_the_bound_it_is_the_weighted_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.arange(1.0, 9.0, dtype=torch.float64)
    got, _, info = norm_clipping(100.0).apply(updates, (), weights=weights)
    torch.testing.assert_close(got, weights / weights.sum() @ updates)
    assert (info["clipped"], info["bound"]) == (0, 100.0)


def test_a_far_row_counts_as_one_of_the_median_length() -> None:
    honest = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    for far in (100.0, 1e30):
        updates = torch.cat([honest, torch.full((1, 5), far)])
        got, _, info = norm_clipping().apply(updates, (), weights=torch.ones(7))
        assert float(got.norm()) <= info["bound"]
        assert info["clipped"] == 3
        assert info["bound"] == pytest.approx(float(updates.double().norm(dim=1).median()))


def test_when_most_rows_are_zero_the_rest_is_clipped_away() -> None:
    updates = torch.zeros(5, 3)
    updates[0] = 4.0
    assert norm_clipping().apply(updates, (), weights=torch.ones(5))[0].tolist() == [0.0, 0.0, 0.0]


def test_options_and_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(FedoptError, match="norm_clipping needs weights >= 0 with a positive sum"):
        norm_clipping().apply(torch.ones(2, 3), (), weights=torch.zeros(2))
    for bound in (0.0, -1.0, "mean"):
        with pytest.raises(ConfigError, match=r"aggregator\.bound: "):
            build("norm_clipping", {"bound": bound})
    assert build("norm_clipping", {}).needs == {"weights"}
