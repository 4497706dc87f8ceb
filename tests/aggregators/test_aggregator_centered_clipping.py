"""Centred clipping against a loop, its centre, and the numbers of the specification."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.centered_clipping import centered_clipping
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], v: list[float], tau: float, iterations: int) -> list[float]:
    for _ in range(iterations):
        moved = list(v)
        for row in rows:
            difference = [a - b for a, b in zip(row, v, strict=True)]
            length = math.sqrt(sum(x * x for x in difference))
            factor = 1.0 if length <= tau else tau / length
            for j, x in enumerate(difference):
                moved[j] += factor * x / len(rows)
        v = moved
    return v


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(81)
    for _ in range(100):
        n, d = draw.randint(1, 12), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        previous = [draw.gauss(0, 1) for _ in range(d)]
        tau, iterations = draw.choice([0.1, 1.0, 3.0]), draw.randint(1, 5)
        updates = torch.tensor(rows, dtype=torch.float64)
        before = torch.tensor(previous, dtype=torch.float64)
        got, _, info = centered_clipping(tau, iterations).apply(updates, (), previous=before)
        assert got.tolist() == pytest.approx(loop(rows, previous, tau, iterations), abs=1e-12)
        rest = (1.0 - info["trust"].sum()) * before
        torch.testing.assert_close(info["trust"] @ updates + rest, got)
        got, _, _ = centered_clipping(tau, iterations, "zero").apply(updates, ())
        assert got.tolist() == pytest.approx(loop(rows, [0.0] * d, tau, iterations), abs=1e-12)


def test_one_vector_of_length_1_becomes_tau_long() -> None:
    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got, _, info = centered_clipping(centre="zero").apply(row / row.norm(), ())
    assert float(got.norm()) == pytest.approx(0.1)
    assert info["clipped"] == 1
    torch.testing.assert_close(got / got.norm(), (row / row.norm())[0])


def test_with_a_large_tau_it_is_the_plain_mean_after_one_step() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, _, info = centered_clipping(tau=1e3).apply(updates, (), previous=torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(got, updates.mean(0))
    assert info["clipped"] == 0


def test_no_set_of_rows_moves_it_farther_than_tau_in_one_step() -> None:
    previous = torch.randn(6, generator=torch.Generator().manual_seed(2))
    for far in (3.0, 1e30):
        got, _, _ = centered_clipping(tau=0.5).apply(torch.full((5, 6), far), (), previous=previous)
        assert float((got - previous).norm()) == pytest.approx(0.5, rel=1e-5)


def test_more_iterations_move_the_centre_on() -> None:
    """Not the same differences again: the second step starts where the first one ended."""
    updates = torch.tensor([[3.0], [3.0]], dtype=torch.float64)
    ends = [centered_clipping(2.0, k, "zero").apply(updates, ())[0].item() for k in (1, 2, 3)]
    assert ends == pytest.approx([2.0, 3.0, 3.0])


def test_equal_rows_at_the_centre_stay() -> None:
    row = torch.tensor([1.0, -2.0])
    assert torch.equal(centered_clipping().apply(row.expand(3, 2), (), previous=row)[0], row)
    assert torch.equal(centered_clipping(centre="zero").apply(torch.zeros(3, 2), ())[0], torch.zeros(2))


def test_what_it_needs_follows_from_the_centre() -> None:
    assert build("centered_clipping", {}).needs == {"previous"}
    assert build("centered_clipping", {"centre": "zero"}).needs == frozenset()
    with pytest.raises(FedoptError, match="centered_clipping needs previous, which this strategy does not offer"):
        build("centered_clipping", {}).apply(torch.ones(3, 2), ())
    with pytest.raises(FedoptError, match="needs the last aggregate"):
        centered_clipping().apply(torch.ones(3, 2), ())


def test_options_out_of_range_are_refused() -> None:
    for option, value in (("tau", 0.0), ("iterations", 0)):
        with pytest.raises(ConfigError, match=rf"aggregator\.{option}: should be greater than"):
            build("centered_clipping", {option: value})
    with pytest.raises(ConfigError, match=r"aggregator\.centre: should be 'previous' or 'zero'; 'first' was given"):
        build("centered_clipping", {"centre": "first"})
