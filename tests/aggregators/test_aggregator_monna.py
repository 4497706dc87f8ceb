"""MoNNA against a loop, its two kinds of pivot, and exchanges without it."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.monna import monna
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], pivot: list[float], f: int) -> list[float]:
    ranked = []
    for i, row in enumerate(rows):
        ranked.append((math.sqrt(sum((a - b) * (a - b) for a, b in zip(row, pivot, strict=True))), i))
    ranked.sort()
    chosen = [i for _, i in ranked[: len(rows) - f]]
    return [sum(rows[i][j] for i in chosen) / len(chosen) for j in range(len(pivot))]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(61)
    for _ in range(100):
        f = draw.randint(0, 4)
        n, d = draw.randint(2 * f + 1, 2 * f + 8), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        own = [draw.gauss(0, 1) for _ in range(d)]
        updates = torch.tensor(rows, dtype=torch.float64)
        got = monna(f=f).apply(updates, (), reference=torch.tensor(own, dtype=torch.float64))[0]
        assert got.tolist() == pytest.approx(loop(rows, own, f), abs=1e-12)
        ids = sorted(draw.sample(range(50), n))
        at = draw.randrange(n)
        got = monna(f=f, pivot=ids[at]).apply(updates, (), clients=torch.tensor(ids))[0]
        assert got.tolist() == pytest.approx(loop(rows, rows[at], f), abs=1e-12)


def test_what_it_needs_follows_from_the_pivot() -> None:
    assert build("monna", {"f": 1}).needs == {"reference"}
    assert build("monna", {"f": 1, "pivot": 4}).needs == {"clients"}
    with pytest.raises(FedoptError, match="monna needs reference, which this strategy does not offer"):
        build("monna", {"f": 1}).apply(torch.ones(3, 2), ())


def test_an_honest_pivot_withstands_any_number_of_attackers_far_away() -> None:
    honest = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    for far in (50.0, -1e30):
        updates = torch.cat([honest, torch.full((4, 6), far)])
        got, _, info = monna(f=4, pivot=2).apply(updates, (), clients=torch.arange(9))
        torch.testing.assert_close(got, honest.mean(0))
        assert info["trust"].tolist() == [pytest.approx(0.2)] * 5 + [0.0] * 4


def test_equal_distances_go_to_the_first_row() -> None:
    updates = torch.tensor([[1.0], [-1.0], [0.0]])
    got = monna(f=1).apply(updates, (), reference=torch.zeros(1))[0]
    assert got.item() == 0.5
    assert monna(f=1).apply(updates.flip(0), (), reference=torch.zeros(1))[0].item() == -0.5


def test_without_the_trusted_client_nothing_moves_and_it_is_said() -> None:
    got, _, info = monna(f=1, pivot=7).apply(torch.ones(3, 2), (), clients=torch.tensor([1, 4, 9]))
    assert got.tolist() == [0.0, 0.0]
    assert info["kept_model"] == "the trusted client 7 is not one of the 3 of this exchange"
    assert info["trust"].tolist() == [0.0, 0.0, 0.0]


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("monna", {"f": 2})
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "monna with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="monna with f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        monna(f=2).apply(torch.ones(4, 2), (), reference=torch.ones(2))
    with pytest.raises(ConfigError, match=r"aggregator\.pivot: should be greater than or equal to 0; -1 was given"):
        build("monna", {"f": 2, "pivot": -1})
