"""Adaptive robust clipping against a loop, and how many rows it shortens."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch

from fedopt.aggregators.pre import build
from fedopt.aggregators.pre.arc import arc
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int) -> list[list[float]]:
    n = len(rows)
    k = math.floor(2 * Fraction(f, n) * (n - f))
    ranked = sorted(range(n), key=lambda i: -math.sqrt(sum(x * x for x in rows[i])))
    bound = math.sqrt(sum(x * x for x in rows[ranked[k]]))
    clipped = [list(row) for row in rows]
    for i in ranked[:k]:
        length = math.sqrt(sum(x * x for x in rows[i]))
        clipped[i] = [x * bound / length for x in rows[i]]
    return clipped


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(131)
    for _ in range(100):
        f = draw.randint(0, 4)
        n, d = draw.randint(2 * f + 1, 2 * f + 8), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        got = arc(torch.tensor(rows, dtype=torch.float64), f=f)
        torch.testing.assert_close(got, torch.tensor(loop(rows, f), dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "f", "k"), [(10, 0, 0), (10, 1, 1), (10, 2, 3), (10, 3, 4), (10, 4, 4), (5, 2, 2), (3, 1, 1)]
)
def test_so_many_rows_are_shortened(n: int, f: int, k: int) -> None:
    updates = torch.diag(torch.arange(1.0, n + 1))
    lengths = arc(updates, f=f).norm(dim=1)
    torch.testing.assert_close(lengths, torch.arange(1.0, n + 1).clamp(max=n - k))


def test_without_attackers_nothing_changes() -> None:
    updates = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(arc(updates, f=0), updates)


def test_far_rows_become_as_long_as_an_honest_one() -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    got = arc(torch.cat([honest, torch.full((3, 5), 1e30)]), f=3)
    assert float(got.norm(dim=1).max()) <= float(honest.norm(dim=1).max()) * (1 + 1e-6)


def test_rows_of_zeros_stay() -> None:
    updates = torch.zeros(5, 3)
    updates[2] = 7.0
    assert torch.equal(arc(updates, f=1), torch.zeros(5, 3))


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    assert build("arc", {"f": 2}).admits(4) == (
        "arc with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.pre.0.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="arc with f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        arc(torch.ones(4, 2), f=2)
