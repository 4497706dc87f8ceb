"""The mean around the median against a loop, its ties, and its precondition."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import _sorting, build
from fedopt.aggregators.meamed import meamed, nearest_to_median
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int) -> list[float]:
    n, result = len(rows), []
    for j in range(len(rows[0])):
        column = sorted(row[j] for row in rows)
        median = column[n // 2] if n % 2 else (column[n // 2 - 1] + column[n // 2]) / 2
        # of values equally far from the median the smaller one is nearer
        column.sort(key=lambda value: (abs(value - median), value))
        total = 0.0
        for value in column[: n - f]:
            total += value
        result.append(total / (n - f))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(11)
    for number in range(100):
        f = draw.randint(0, 4)
        n, d = draw.randint(2 * f + 1, 2 * f + 8), draw.randint(1, 6)
        # every other draw in whole and half numbers, so that there are ties
        value = (lambda: draw.randint(-4, 4) / 2) if number % 2 else (lambda: draw.gauss(0, 3))
        rows = [[value() for _ in range(d)] for _ in range(n)]
        got = meamed(torch.tensor(rows, dtype=torch.float64), f=f)
        torch.testing.assert_close(got, torch.tensor(loop(rows, f), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_any_number_of_values_may_be_kept() -> None:
    draw = random.Random(12)
    for n in (1, 2, 5, 8):
        for count in range(1, n + 1):
            rows = [[draw.gauss(0, 3) for _ in range(4)] for _ in range(n)]
            if n % 2 == 0 and count == 1:
                continue  # the two values in the middle are equally far, up to rounding
            got = nearest_to_median(torch.tensor(rows, dtype=torch.float64), count)
            wanted = torch.tensor(loop(rows, n - count), dtype=torch.float64)
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_of_two_values_equally_far_the_smaller_one_stays() -> None:
    updates = torch.tensor([[3.0], [1.0], [2.0]])
    assert meamed(updates, f=1).item() == 1.5
    assert meamed(updates.flip(0), f=1).item() == 1.5


def test_without_attackers_it_is_the_plain_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(meamed(updates, f=0), updates.mean(0))


def test_keeps_more_than_the_trimmed_mean() -> None:
    """All but f of the values count; on one side two are cut off, and on the other none."""
    updates = torch.tensor([[0.0], [1.0], [2.0], [50.0], [60.0]])
    assert meamed(updates, f=2).item() == 1.0


def test_attackers_up_to_f_leave_no_trace_from_afar() -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    for value in (1e30, -1e30):
        far = torch.full((3, 5), value)
        torch.testing.assert_close(meamed(torch.cat([far, honest]), f=3), honest.mean(0))


def test_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(9, 101, generator=torch.Generator().manual_seed(0))
    whole = meamed(updates, f=2)
    monkeypatch.setattr(_sorting, "BLOCK", 64)
    torch.testing.assert_close(meamed(updates, f=2), whole, rtol=1e-6, atol=1e-6)


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("meamed", {"f": 2})
    assert (rule.scope, rule.admits(5)) == ("coordinate", None)
    assert rule.admits(4) == (
        "meamed with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        meamed(torch.ones(4, 2), f=2)
    with pytest.raises(ConfigError, match=r"aggregator\.f: should be greater than or equal to 0; -1 was given"):
        build("meamed", {"f": -1})
