"""Nearest neighbour mixing against a loop, and the numbers of the specification."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators.pre import build
from fedopt.aggregators.pre.nnm import nnm
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int, include_self: bool) -> list[list[float]]:
    n, mixed = len(rows), []
    for i in range(n):
        ranked = []
        for j in range(n):
            if include_self or j != i:
                sq = sum((a - b) * (a - b) for a, b in zip(rows[i], rows[j], strict=True))
                ranked.append((sq, j))
        ranked.sort()
        near = [j for _, j in ranked[: n - f]]
        mixed.append([sum(rows[j][a] for j in near) / (n - f) for a in range(len(rows[0]))])
    return mixed


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(101)
    for _ in range(100):
        include_self = draw.random() < 0.5
        f = draw.randint(0 if include_self else 1, 4)
        n, d = draw.randint(f + 1, 2 * f + 8), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        got = nnm(torch.tensor(rows, dtype=torch.float64), f=f, include_self=include_self)
        wanted = torch.tensor(loop(rows, f, include_self), dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [3, 7, 20])
def test_identical_vectors_are_returned(n: int) -> None:
    row = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nnm(row.expand(n, 50), f=1), row.expand(n, 50))


def test_a_row_is_one_of_those_nearest_to_it() -> None:
    """All but one left out: each row is its own mixture, bit by bit; without itself it is its nearest other."""
    updates = torch.tensor([[0.0, 1 / 3], [1.0, 0.1], [5.0, 7.0]])
    assert torch.equal(nnm(updates, f=2), updates)
    assert torch.equal(nnm(updates, f=2, include_self=False), updates[torch.tensor([1, 0, 1])])


def test_without_attackers_every_row_is_the_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(nnm(updates, f=0), updates.mean(0).expand(8, 5))


@pytest.mark.parametrize("far", [100.0, 1e30])
def test_honest_rows_mix_with_honest_ones_alone(far: float) -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    mixed = nnm(torch.cat([honest, torch.full((3, 5), far)]), f=3)
    torch.testing.assert_close(mixed[:7], honest.mean(0).expand(7, 5))


def test_equal_distances_go_to_the_first_row() -> None:
    updates = torch.tensor([[0.0], [1.0], [-1.0]])
    assert nnm(updates, f=1)[0].item() == 0.5
    assert nnm(updates[torch.tensor([0, 2, 1])], f=1)[0].item() == -0.5


def test_more_attackers_than_half_are_mixed_all_the_same() -> None:
    step = build("nnm", {"f": 7})
    assert (step.rows, step.count(10), step.admits(10)) == ("same", 10, None)


def test_sizes_that_cannot_be_are_refused_with_the_numbers() -> None:
    assert build("nnm", {"f": 3}).admits(3) == (
        "nnm with f = 3 needs n >= f + 1 = 4 clients per exchange, 3 were given;"
        " lower aggregator.pre.0.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="nnm with f = 3 needs n >= f \\+ 1 = 4 rows, got 3"):
        nnm(torch.ones(3, 2), f=3)
    with pytest.raises(ConfigError, match=r"^aggregator\.pre\.0: nnm: f = 0 asks for n neighbours"):
        build("nnm", {"f": 0, "include_self": False})
    with pytest.raises(FedoptError, match="nnm: f = 0 asks for n neighbours"):
        nnm(torch.ones(3, 2), f=0, include_self=False)
