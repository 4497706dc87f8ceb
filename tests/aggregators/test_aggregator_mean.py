"""The weighted mean against a loop, and its errors."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.mean import mean
from fedopt.types import FedoptError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        n, d = draw.randint(1, 12), draw.randint(1, 6)
        rows = [[draw.gauss(0, 3) for _ in range(d)] for _ in range(n)]
        weights = [draw.randint(0, 50) for _ in range(n - 1)] + [draw.randint(1, 50)]
        wanted = []
        for j in range(d):
            total = 0.0
            for i in range(n):
                total += weights[i] * rows[i][j]
            wanted.append(total / sum(weights))
        got = mean(torch.tensor(rows, dtype=torch.float64), weights=torch.tensor(weights))
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_one_row_comes_back_bit_by_bit() -> None:
    row = torch.tensor([[1 / 3, -2e-38, 7.0]])
    assert torch.equal(mean(row, weights=torch.tensor([0.1])), row[0])


def test_large_weights_do_not_overflow_float32() -> None:
    updates = torch.tensor([[1.0], [3.0]])
    assert torch.equal(mean(updates, weights=torch.tensor([3e38, 3e38])), torch.tensor([2.0]))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [2.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_without_a_positive_sum_are_refused(weights: list[float]) -> None:
    with pytest.raises(FedoptError, match="mean needs weights >= 0 with a positive sum"):
        mean(torch.ones(2, 3), weights=torch.tensor(weights))


def test_is_linear_and_asks_for_weights() -> None:
    rule = build("mean", {})
    assert rule.needs == {"weights"}
    assert (rule.scope, rule.admits(1)) == ("linear", None)
