"""Static clipping against a loop."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.aggregators import _rows
from fedopt.aggregators.pre import build
from fedopt.aggregators.pre.clipping import clipping
from fedopt.registry import ConfigError


def loop(rows: list[list[float]], bound: float) -> list[list[float]]:
    clipped = []
    for row in rows:
        length = math.sqrt(sum(x * x for x in row))
        clipped.append([x * bound / length for x in row] if length > bound else row)
    return clipped


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(121)
    for _ in range(100):
        n, d, bound = draw.randint(1, 12), draw.randint(1, 6), draw.choice([0.1, 1.0, 2.0])
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        got = clipping(torch.tensor(rows, dtype=torch.float64), bound=bound)
        torch.testing.assert_close(got, torch.tensor(loop(rows, bound), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_short_rows_keep_their_bits_and_the_input_is_not_changed() -> None:
    updates = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    updates[1] *= 100.0
    before = updates.clone()
    got = clipping(updates, bound=10.0)
    assert torch.equal(updates, before)
    assert torch.equal(got[torch.tensor([0, 2, 3])], updates[torch.tensor([0, 2, 3])])
    assert float(got[1].norm()) == pytest.approx(10.0)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e30), (torch.float64, 1e30), (torch.float64, 1e200)])
def test_far_rows_neither_overflow_nor_turn_into_nan(dtype: torch.dtype, far: float) -> None:
    got = clipping(torch.tensor([[far, 0.0], [0.0, 0.0]], dtype=dtype), bound=1.0)
    assert torch.isfinite(got).all()
    assert got.abs().max() <= 1.0


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e18, 1e30])
def test_lengths_hold_where_squares_leave_float32(size: float) -> None:
    updates = size * torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    wanted = updates.double().norm(dim=1)
    torch.testing.assert_close(_rows.lengths(updates), wanted, rtol=1e-6, atol=0.0)
    got = clipping(updates, bound=float(wanted.min()))
    torch.testing.assert_close(got.double().norm(dim=1), wanted.min().expand(3), rtol=1e-6, atol=0.0)


def test_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(7, 130, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    whole = clipping(updates, bound=1.0)
    monkeypatch.setattr(_rows, "_BLOCK", 70)
    torch.testing.assert_close(clipping(updates, bound=1.0), whole, rtol=1e-12, atol=0.0)


def test_a_bound_is_needed_and_positive() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.pre\.0\.bound: missing"):
        build("clipping", {})
    with pytest.raises(ConfigError, match=r"aggregator\.pre\.0\.bound: should be greater than 0; 0\.0 was given"):
        build("clipping", {"bound": 0.0})
