"""Optimal ALIE: the search against one in plain loops, and what it finds where the best z is known."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt.attacks import build
from fedopt.attacks.optimal_alie import optimal_alie
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Rows = list[list[float]]


def middle(rows: Rows) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        column = sorted(row[j] for row in rows)
        k = len(column)
        result.append((column[(k - 1) // 2] + column[k // 2]) / 2)
    return result


def loop(honest: Rows, b: int, side: int, evaluations: int, step: float, ratio: float, most: float) -> list[float]:
    mean = [sum(column) / len(honest) for column in zip(*honest, strict=True)]
    sigma = [
        math.sqrt(sum((x - m) ** 2 for x in column) / len(honest))
        for column, m in zip(zip(*honest, strict=True), mean, strict=True)
    ]

    def sent(z: float) -> list[float]:
        return [m + side * z * s for m, s in zip(mean, sigma, strict=True)]

    def score(z: float) -> float:
        moved = middle([*honest, *[sent(z)] * b])
        return math.sqrt(sum((x - m) ** 2 for x, m in zip(moved, mean, strict=True)))

    best, highest, doubling = 0.0, score(0.0), True
    for _ in range(evaluations - 1):
        z = best + step if best + step < most else most
        reached = score(z)
        if reached > highest:
            best, highest = z, reached
        else:
            doubling = False
        step = step * 2 if doubling else step * ratio
    return sent(best)


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(9)
    for _ in range(100):
        n, d = draw.randint(3, 15), draw.randint(1, 4)
        b = draw.randint(1, n - 1)
        honest = [[draw.gauss(1, 3) for _ in range(d)] for _ in range(n - b)]
        options = {"evaluations": draw.randint(1, 12), "ratio": draw.uniform(0.55, 0.9), "step": draw.uniform(0.1, 2)}
        options["most"] = draw.choice([0.7, 1e9])
        side = draw.choice([1, -1])
        rows = torch.tensor(honest, dtype=torch.float64)

        def outcome(sent: Tensor, rows: Tensor = rows) -> Tensor:
            return torch.tensor(middle(torch.cat([rows, sent]).tolist()), dtype=torch.float64)

        got = optimal_alie(rows, b=b, outcome=outcome, direction=side, **options)  # type: ignore[arg-type]
        wanted = loop(honest, b, side, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.tensor([wanted] * b, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [1, -1])
def test_finds_the_largest_shift_that_a_filter_lets_through(side: int) -> None:
    # mean 0, deviation 2 in the one coordinate; a filter at |x| <= 11 allows z = 5.5
    honest = torch.tensor([[2.0], [-2.0], [2.0], [-2.0]], dtype=torch.float64)

    def outcome(sent: Tensor) -> Tensor:
        rows = torch.cat([honest, sent])
        return rows[rows.abs()[:, 0] <= 11.0].mean(dim=0)

    sent = optimal_alie(honest, b=2, outcome=outcome, direction=side, evaluations=60)  # type: ignore[arg-type]
    assert sent[:, 0].tolist() == pytest.approx([side * 11.0] * 2, rel=1e-3)


def test_one_honest_row_is_sent_as_it_is() -> None:
    row = torch.tensor([[1.0, -2.0]])
    sent = optimal_alie(row, b=3, outcome=lambda sent: sent[0])
    assert torch.equal(sent, row.expand(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    honest = torch.tensor([[1e30, -1e30], [2e30, 1e30], [0.0, 3e30]], dtype=dtype)
    sent = optimal_alie(honest, b=5, outcome=lambda sent: torch.cat([honest, sent]).mean(dim=0), evaluations=6)
    assert bool(sent.isfinite().all()) and sent.dtype == dtype
    assert honest[1].tolist() == torch.tensor([2e30, 1e30], dtype=dtype).tolist()


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"optimal_alie sees no honest update .* lower the share of attackers"):
        optimal_alie(torch.zeros(0, 3), b=4, outcome=lambda sent: sent[0])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.direction: should be 1 or -1"):
        build("optimal_alie", {"direction": 0})
