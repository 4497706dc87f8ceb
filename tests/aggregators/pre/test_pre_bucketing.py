"""Bucketing against a loop, the law of its order, and the numbers of the specification."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.aggregators.pre import build
from fedopt.aggregators.pre.bucketing import bucketing
from fedopt.registry import ConfigError


def loop(rows: list[list[float]], order: list[int], s: int) -> list[list[float]]:
    buckets = []
    for start in range(0, len(rows), s):
        buckets.append(sorted(order[start : start + s]))
    means = []
    for bucket in sorted(buckets):
        means.append([sum(rows[i][a] for i in bucket) / len(bucket) for a in range(len(rows[0]))])
    return means


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(111)
    for number in range(100):
        n, d, s = draw.randint(1, 15), draw.randint(1, 6), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        key = keys.root(number)
        got = bucketing(torch.tensor(rows, dtype=torch.float64), key=key, s=s)
        wanted = loop(rows, keys.permutation(key, n).tolist(), s)
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_buckets_of_one_are_the_rows_themselves(n: int) -> None:
    updates = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bucketing(updates, key=keys.root(3), s=1), updates)


def test_one_bucket_is_the_mean() -> None:
    updates = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for s in (7, 8, 100):
        torch.testing.assert_close(bucketing(updates, key=keys.root(3), s=s), updates.mean(0)[None])


def test_a_bucket_that_is_not_full_is_divided_by_its_own_size() -> None:
    assert torch.allclose(bucketing(torch.ones(7, 3), key=keys.root(4), s=3), torch.ones(3, 3))


def test_another_key_is_another_order_and_every_pair_meets() -> None:
    updates = torch.eye(6, dtype=torch.float64)
    together = torch.zeros(6, 6)
    for seed in range(300):
        for bucket in bucketing(updates, key=keys.root(seed), s=2):
            i, j = torch.nonzero(bucket).flatten().tolist()
            together[i, j] += 1
    # 15 pairs, each expected in 60 of 300 rounds; five standard deviations are 35
    pairs = together[torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1)]
    assert pairs.min() > 25
    assert pairs.max() < 95


def test_few_attackers_touch_few_buckets() -> None:
    updates = torch.zeros(20, 3)
    updates[:4] = 1e30
    for seed in range(20):
        got = bucketing(updates, key=keys.root(seed), s=2)
        assert got.shape == (10, 3)
        assert int((got.abs().amax(1) > 0).sum()) <= 4


def test_facts_and_options() -> None:
    step = build("bucketing", {})
    assert (step.rows, [step.count(n) for n in (1, 2, 9, 10)]) == ("fewer", [1, 1, 5, 5])
    assert build("bucketing", {"s": 3}).count(10) == 4
    with pytest.raises(ConfigError, match=r"aggregator\.pre\.0\.s: should be greater than or equal to 1; 0 was given"):
        build("bucketing", {"s": 0})
