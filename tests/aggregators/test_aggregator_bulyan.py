"""Bulyan against a loop, its ties, and its precondition."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.bulyan import bulyan
from fedopt.types import FedoptError


def sq_distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) * (x - y) for x, y in zip(a, b, strict=True))


def selected(rows: list[list[float]], f: int) -> list[int]:
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        scores = {}
        for i in left:
            near = sorted(sq_distance(rows[i], rows[j]) for j in left if j != i)
            # the score, and what decides among equal scores: the sums over more and more neighbours
            scores[i] = [sum(near[:width]) for width in range(max(len(left) - f - 2, 0), len(near) + 1)]
        best = min(left, key=lambda i: scores[i])
        chosen.append(best)
        left.remove(best)
    return chosen


def loop(rows: list[list[float]], f: int) -> list[float]:
    n = len(rows)
    chosen, result = [rows[i] for i in selected(rows, f)], []
    for j in range(len(rows[0])):
        column = sorted(row[j] for row in chosen)
        m = len(column)
        median = (column[(m - 1) // 2] + column[m // 2]) / 2
        column.sort(key=lambda value: abs(value - median))
        result.append(sum(column[: n - 4 * f]) / (n - 4 * f))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(21)
    for _ in range(100):
        f = draw.randint(0, 3)
        n, d = draw.randint(4 * f + 3, 4 * f + 7), draw.randint(2, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        got = bulyan(torch.tensor(rows, dtype=torch.float64), f=f)
        torch.testing.assert_close(got, torch.tensor(loop(rows, f), dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_rows_in_another_order_give_the_same_although_late_scores_are_shared() -> None:
    for seed in range(20):
        for f in (1, 2, 3):
            n = 4 * f + 3
            updates = keys.normal(keys.root(seed), n, 5, dtype=torch.float64)
            order = keys.permutation(keys.root(seed + 1), n)
            torch.testing.assert_close(bulyan(updates[order], f=f), bulyan(updates, f=f), rtol=1e-12, atol=1e-12)


def test_without_attackers_it_is_the_plain_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(bulyan(updates, f=0), updates.mean(0))


def test_one_coordinate_of_an_attacker_near_the_others_does_not_pass() -> None:
    """The leeway that Krum leaves in high dimension: a row close to the honest ones, but far off in one coordinate."""
    honest = 0.1 * torch.randn(9, 400, generator=torch.Generator().manual_seed(6))
    attackers = honest.mean(0).repeat(2, 1)
    attackers[:, 7] += 2.0
    updates = torch.cat([attackers, honest])
    krum = build("krum", {"f": 2})
    assert float(krum.apply(updates, ())[0][7]) > 1.5
    assert abs(float(bulyan(updates, f=2)[7])) < 0.3


def test_attackers_who_agree_do_not_win_below_the_bound() -> None:
    honest = 0.1 * torch.randn(9, 4, generator=torch.Generator().manual_seed(7))
    for value in (5.0, 1e30):
        got = bulyan(torch.cat([torch.full((2, 4), value), honest]), f=2)
        assert float(got.abs().max()) < 0.5


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("bulyan", {"f": 2})
    assert rule.admits(11) is None
    assert rule.admits(10) == (
        "bulyan with f = 2 needs n >= 4f + 3 = 11 clients per exchange, 10 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="f = 2 needs n >= 4f \\+ 3 = 11 rows, got 10"):
        bulyan(torch.ones(10, 2), f=2)
