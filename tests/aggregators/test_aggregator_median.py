"""The median against a loop, against NumPy, and where torch's own differs."""

from __future__ import annotations

import random

import numpy as np
import torch

from fedopt.aggregators.median import median


def loop(rows: list[list[float]]) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        column = [row[j] for row in rows]
        while len(column) > 2:
            column.remove(min(column))
            column.remove(max(column))
        result.append(sum(column) / len(column))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(3)
    for _ in range(100):
        n, d = draw.randint(1, 12), draw.randint(1, 5)
        rows = [[float(draw.randint(-4, 4)) + draw.choice([0.0, 0.5]) for _ in range(d)] for _ in range(n)]
        got = median(torch.tensor(rows, dtype=torch.float64))
        torch.testing.assert_close(got, torch.tensor(loop(rows), dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_equals_numpy_and_not_the_lower_median() -> None:
    for n in (4, 5, 10):
        updates = torch.randn(n, 7, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        torch.testing.assert_close(median(updates), torch.from_numpy(np.median(updates.numpy(), axis=0)))
        assert torch.equal(median(updates), updates.median(dim=0).values) == (n % 2 == 1)


def test_values_near_the_largest_number_do_not_overflow() -> None:
    big = torch.finfo(torch.float32).max
    assert float(median(torch.tensor([[big], [big]]))) == big
    assert float(median(torch.tensor([[big], [-big]]))) == 0.0


def test_a_minority_cannot_move_it_out_of_the_honest_range() -> None:
    honest = torch.randn(5, 6, generator=torch.Generator().manual_seed(4))
    for value in (1e30, -1e30):
        got = median(torch.cat([honest, torch.full((4, 6), value)]))
        assert bool((got >= honest.min(0).values).all() and (got <= honest.max(0).values).all())
