"""The covariance-bound agnostic filter against covariances written out, and how it ends."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.caf import caf
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int) -> tuple[list[float], float, int]:
    """The weighted mean, its largest eigenvalue, and the number of turns; with the d x d covariance."""
    n, d = len(rows), len(rows[0])
    c, least, best, turns = [1.0] * n, math.inf, [sum(row[a] for row in rows) / n for a in range(d)], 0
    while sum(c) > n - 2 * f:
        total = sum(c)
        mean = [sum(c[i] * rows[i][a] for i in range(n)) / total for a in range(d)]
        covariance = np.zeros((d, d))
        for i in range(n):
            for a in range(d):
                for b in range(d):
                    covariance[a, b] += c[i] * (rows[i][a] - mean[a]) * (rows[i][b] - mean[b]) / total
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < least:
            least, best = float(values[-1]), mean
        tau = [sum((rows[i][a] - mean[a]) * vectors[a, -1] for a in range(d)) ** 2 for i in range(n)]
        most = max(t for t, weight in zip(tau, c, strict=True) if weight > 0)
        c = [weight * (1 - t / most) if weight > 0 else 0.0 for weight, t in zip(c, tau, strict=True)]
        turns += 1
    return best, least, turns


def test_equals_the_loop_on_random_draws() -> None:
    draw, chosen = random.Random(71), set()
    for _ in range(100):
        f = draw.randint(0, 4)
        n, d = draw.randint(2 * f + 1, 2 * f + 7), draw.randint(1, 5)
        # some rows farther out, so that the best turn is not always the same
        rows = [[draw.gauss(0, 1 + 5 * (i < f)) for _ in range(d)] for i in range(n)]
        got, _, info = caf(f=f).apply(torch.tensor(rows, dtype=torch.float64), ())
        wanted, least, turns = loop(rows, f)
        assert got.tolist() == pytest.approx(wanted, abs=1e-9)
        assert turns <= 2 * f
        chosen.add(round(1.0 / float(info["trust"].max())) < n)
        if f:
            assert info["spread"] == pytest.approx(least, rel=1e-9)
    assert chosen == {True, False}


def test_trust_is_the_weights_of_the_mean() -> None:
    updates = torch.randn(9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    updates[4] += 30.0
    got, _, info = caf(f=2).apply(updates, ())
    torch.testing.assert_close(info["trust"] @ updates, got)
    assert float(info["trust"].sum()) == pytest.approx(1.0)
    assert float(info["trust"][4]) == 0.0


def test_without_attackers_it_is_the_plain_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(caf(f=0).apply(updates, ())[0], updates.mean(0))


@pytest.mark.parametrize("far", [1e3, 1e12, 1e30])
def test_far_rows_lose_their_weight_and_the_others_keep_theirs(far: float) -> None:
    """A row without weight is no measure for the others, however far away it stands."""
    honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    away = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got, _, info = caf(f=3).apply(torch.cat([far * away, honest]), ())
    assert float(info["trust"][:3].sum()) == 0.0
    assert float((got - honest.mean(0)).norm()) < 1.0


def test_equal_rows_and_a_single_row() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(caf(f=0).apply(row, ())[0], row[0])
    torch.testing.assert_close(caf(f=2).apply(row.expand(5, 2), ())[0], row[0])


def test_the_far_ends_of_a_line_go_first() -> None:
    """Both ends are equally far from the mean; what is left is the middle, and the mean is the same."""
    updates = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert caf(f=1).apply(updates, ())[0].tolist() == pytest.approx([4.0, 5.0, 6.0])


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("caf", {"f": 2})
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "caf with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="caf with f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        caf(f=2).apply(torch.ones(4, 2), ())
