"""Smallest maximum eigenvalue averaging against covariances written out, and its limits."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from fedopt.aggregators import _subsets, build
from fedopt.aggregators.smea import smea
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def largest_eigenvalue(rows: list[list[float]]) -> float:
    """Of the d x d covariance, entry by entry."""
    n, d = len(rows), len(rows[0])
    mean = [sum(row[a] for row in rows) / n for a in range(d)]
    covariance = np.zeros((d, d))
    for a in range(d):
        for b in range(d):
            covariance[a, b] = sum((row[a] - mean[a]) * (row[b] - mean[b]) for row in rows) / n
    return float(np.linalg.eigvalsh(covariance)[-1])


def loop(rows: list[list[float]], f: int) -> list[int]:
    found = []
    for subset in itertools.combinations(range(len(rows)), len(rows) - f):
        found.append((largest_eigenvalue([rows[i] for i in subset]), list(subset)))
    return min(found)[1]


def kept(updates: torch.Tensor, f: int) -> list[int]:
    info = smea(f=f).apply(updates, ())[2]
    assert set(info["trust"].tolist()) <= {0.0, 1.0 / (updates.shape[0] - f)}
    return torch.nonzero(info["trust"]).flatten().tolist()


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(51)
    for _ in range(100):
        f = draw.randint(0, 2)
        n, d = draw.randint(2 * f + 2, 2 * f + 5), draw.randint(1, 5)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        updates = torch.tensor(rows, dtype=torch.float64)
        subset = loop(rows, f)
        if n - f < 3 and d > 1:
            continue
        assert kept(updates, f) == subset
        wanted = [sum(rows[i][j] for i in subset) / (n - f) for j in range(d)]
        assert smea(f=f).apply(updates, ())[0].tolist() == pytest.approx(wanted, abs=1e-12)


def test_far_from_the_origin_and_beside_a_far_row_it_chooses_the_same() -> None:
    for seed in range(10):
        updates = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        chosen = kept(updates, 2)
        assert kept(updates + 1e6, 2) == chosen
        spoiled = torch.cat([updates[:3], torch.full((1, 20), 1e30, dtype=torch.float64), updates[3:]])
        assert kept(spoiled, 3) == [i + (i >= 3) for i in chosen]


def test_spread_along_one_direction_counts_more_than_in_all_of_them() -> None:
    """Here minimum diameter keeps another row: the one far along the direction of the rest."""
    along = torch.tensor([[float(x), 0.0] for x in (-3, -2, -1, 1, 2, 3)], dtype=torch.float64)
    updates = torch.cat([along, torch.tensor([[4.0, 0.0], [0.0, 4.4]], dtype=torch.float64)])
    assert kept(updates, 1) == [0, 1, 2, 3, 4, 5, 7]
    assert loop(updates.tolist(), 1) == [0, 1, 2, 3, 4, 5, 7]


def test_result_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    whole = smea(f=3).apply(updates, ())[0]
    monkeypatch.setattr(_subsets, "_BATCH", 7 * 49)
    assert torch.equal(smea(f=3).apply(updates, ())[0], whole)


@pytest.mark.parametrize("far", [100.0, 1e30])
def test_a_minority_that_stands_together_is_left_out(far: float) -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    updates = torch.cat([torch.full((3, 5), far), honest])
    assert kept(updates, 3) == list(range(3, 10))
    torch.testing.assert_close(smea(f=3).apply(updates, ())[0], honest.mean(0))


def test_equal_rows_and_a_single_row() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(smea(f=0).apply(row, ())[0], row[0])
    torch.testing.assert_close(smea(f=2).apply(row.expand(5, 2), ())[0], row[0])


def test_sizes_out_of_reach_are_refused_with_the_numbers() -> None:
    rule = build("smea", {"f": 2})
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "smea with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="smea with f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        smea(f=2).apply(torch.ones(4, 2), ())
    message = "smea: 100 clients without f = 3 of them are 161,700 subsets, .* the most is 100,000"
    with pytest.raises(ConfigError, match=f"^aggregator: {message}"):
        build("smea", {"f": 3}).admits(100)
    with pytest.raises(FedoptError, match=message):
        smea(f=3).apply(torch.ones(100, 2), ())
