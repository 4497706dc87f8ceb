"""Minimum diameter averaging against a loop, its ties, and its limits."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from fedopt import keys
from fedopt.aggregators import _subsets, build
from fedopt.aggregators.mda import mda
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int) -> tuple[float, list[int]]:
    """Smallest diameter, and the subset of that diameter with the smallest sum of squared distances."""
    n, sq = len(rows), {}
    for i in range(n):
        for j in range(i + 1, n):
            sq[i, j] = sum((a - b) * (a - b) for a, b in zip(rows[i], rows[j], strict=True))
    best: tuple[float, float, list[int]] = (math.inf, math.inf, [])
    for subset in itertools.combinations(range(n), n - f):
        pairs = [sq[pair] for pair in itertools.combinations(subset, 2)]
        best = min(best, (max(pairs, default=0.0), sum(pairs), list(subset)))
    return best[0], best[2]


def kept(updates: torch.Tensor, f: int) -> list[int]:
    info = mda(f=f).apply(updates, ())[2]
    assert set(info["trust"].tolist()) <= {0.0, 1.0 / (updates.shape[0] - f)}
    return torch.nonzero(info["trust"]).flatten().tolist()


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(41)
    for _ in range(100):
        f = draw.randint(0, 3)
        n, d = draw.randint(2 * f + 1, 2 * f + 5), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        updates = torch.tensor(rows, dtype=torch.float64)
        _, subset = loop(rows, f)
        assert kept(updates, f) == subset
        wanted = [sum(rows[i][j] for i in subset) / (n - f) for j in range(d)]
        assert mda(f=f).apply(updates, ())[0].tolist() == pytest.approx(wanted, abs=1e-12)


def test_of_equal_diameters_the_smaller_spread_is_taken() -> None:
    """Without the first or without the last row the diameter is 6; the others stand nearer to the last."""
    updates = torch.tensor([[-4.0], [1.0], [1.75], [2.0], [7.0]], dtype=torch.float64)
    assert kept(updates, 1) == [1, 2, 3, 4]
    assert kept(updates.flip(0), 1) == [0, 1, 2, 3]
    # a tie in this too, and the first rows stay
    updates[2] = 1.5
    assert kept(updates, 1) == [0, 1, 2, 3]


def test_rows_in_another_order_give_the_same() -> None:
    for seed in range(30):
        updates = keys.normal(keys.root(seed), 11, 6, dtype=torch.float64)
        order = keys.permutation(keys.root(seed + 100), 11)
        one, other = mda(f=3).apply(updates, ())[0], mda(f=3).apply(updates[order], ())[0]
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_result_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    whole = mda(f=3).apply(updates, ())[0]
    monkeypatch.setattr(_subsets, "_BATCH", 5 * 49)
    assert [len(batch) for batch in _subsets.subsets(10, 7)] == 24 * [5]
    assert torch.equal(mda(f=3).apply(updates, ())[0], whole)


@pytest.mark.parametrize("far", [100.0, 1e30])
def test_a_minority_that_stands_together_is_left_out(far: float) -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    updates = torch.cat([torch.full((3, 5), far), honest])
    assert kept(updates, 3) == list(range(3, 10))
    torch.testing.assert_close(mda(f=3).apply(updates, ())[0], honest.mean(0))


def test_equal_rows_and_a_single_row() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(mda(f=0).apply(row, ())[0], row[0])
    torch.testing.assert_close(mda(f=2).apply(row.expand(5, 2), ())[0], row[0])


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("mda", {"f": 2})
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "mda with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="mda with f = 2 needs n >= 2f \\+ 1 = 5 rows, got 4"):
        mda(f=2).apply(torch.ones(4, 2), ())


def test_too_many_subsets_are_refused_with_their_number() -> None:
    rule = build("mda", {"f": 8})
    message = "mda: 100 clients without f = 8 of them are 186,087,894,300 subsets, .* the most is 1,000,000"
    with pytest.raises(ConfigError, match=f"^aggregator: {message}"):
        rule.admits(100)
    with pytest.raises(FedoptError, match=message):
        mda(f=8).apply(torch.ones(100, 2), ())
