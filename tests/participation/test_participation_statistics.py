"""Selection statistics: the closed forms of the uniform selector, loops, exact figures, and what they leave alone."""

from __future__ import annotations

import copy
import math
import statistics as numbers
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedopt import keys
from fedopt.participation import registry, selection
from fedopt.participation.by_size import by_size
from fedopt.participation.uniform import uniform
from fedopt.registry import facts
from fedopt.selection_statistics import (
    captured,
    discrepancy,
    effective_size,
    grid,
    inclusion,
    statistics,
)
from fedopt.surveyed import Surveyed
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Batches, FedoptError

N = 24
EVERYBODY = torch.arange(N)
SIZES = (3, 8, 1, 5, 13, 2, 8, 4)


def some(size: int) -> Tensor:
    """A pool of so many of N clients."""
    return keys.sample(keys.root(9), N, size).sort().values


def near(values: list[float], wanted: float, *, least: float) -> None:
    """The mean is within four standard errors, and these are small enough to tell `wanted` from so far away."""
    error = numbers.stdev(values) / math.sqrt(len(values))
    assert 4.0 * error < least, "the test could not fail"
    assert abs(numbers.mean(values) - wanted) < 4.0 * error


@pytest.mark.parametrize("count", [1, 6, 24])
def test_everybody_is_included_alike_by_the_uniform_selector(count: int) -> None:
    draws = 2000
    found = inclusion(uniform(), (), count, EVERYBODY, N, keys.root(1), draws=draws)
    pi = count / N
    assert found.probabilities.shape == (N,) and found.probabilities.dtype == torch.float64
    assert float((found.probabilities - pi).abs().max()) <= 4.0 * math.sqrt(pi * (1.0 - pi) / draws)
    assert float(found.shares.sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("count", [1, 6])
def test_the_effective_size_of_the_uniform_selector(count: int) -> None:
    """1 / ESS = 1 / N on average; uncorrected, with N π (1 - π) / (R m²) on top."""
    found = [inclusion(uniform(), (), count, EVERYBODY, N, keys.root(t)) for t in range(40)]
    bias = N * (count / N) * (1.0 - count / N) / (200 * count**2)
    near([1.0 / effective_size(f) for f in found], 1.0 / N, least=bias)
    near([1.0 / effective_size(f, corrected=False) for f in found], 1.0 / N + bias, least=bias)


@pytest.mark.parametrize("size", [6, 16])
def test_what_falls_into_a_pool_of_the_uniform_selector(size: int) -> None:
    found = [captured(inclusion(uniform(), (), 5, EVERYBODY, N, keys.root(t)), some(size)) for t in range(40)]
    near(found, size / N, least=0.02)


@pytest.mark.parametrize(("size", "count"), [(6, 1), (16, 1), (16, 6)])
def test_how_far_a_pool_of_the_uniform_selector_is_from_all(size: int, count: int) -> None:
    """1 / |I| - 1 / N on average; uncorrected, with the variances of both estimates on top."""
    pairs = [
        (
            inclusion(uniform(), (), count, some(size), N, keys.fold(keys.root(t), "inner")),
            inclusion(uniform(), (), count, EVERYBODY, N, keys.root(t)),
        )
        for t in range(40)
    ]
    wanted = 1.0 / size - 1.0 / N
    bias = sum(n * (count / n) * (1.0 - count / n) / (200 * count**2) for n in (size, N))
    near([discrepancy(inner, outer) for inner, outer in pairs], wanted, least=bias)
    near([discrepancy(inner, outer, corrected=False) for inner, outer in pairs], wanted + bias, least=bias)


def looped(count: int, pool: list[int], key: Tensor, draws: int) -> list[float]:
    state = by_size().init(small_problem(small_federation(SIZES)))
    seen = [0] * len(SIZES)
    for r in range(draws):
        for i in by_size().choose(state, count, torch.tensor(pool), keys.fold(key, "inclusion", count, r)).tolist():
            seen[i] += 1
    return [times / draws for times in seen]


def test_oracle() -> None:
    state = by_size().init(small_problem(small_federation(SIZES)))
    pool, count, draws, n = [0, 2, 3, 6, 7], 2, 30, len(SIZES)
    outer = inclusion(by_size(), state, count, torch.arange(n), n, keys.root(3), draws=draws)
    inner = inclusion(by_size(), state, count, torch.tensor(pool), n, keys.root(4), draws=draws)
    pi, psi = looped(count, list(range(n)), keys.root(3), draws), looped(count, pool, keys.root(4), draws)
    assert outer.probabilities.tolist() == pi and inner.probabilities.tolist() == psi

    def variance(p: float) -> float:
        return p * (1.0 - p) / (draws - 1) / count**2

    squares, noise, inside, apart, both = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        p = pi[i] / count
        squares += p * p
        noise += variance(pi[i])
        inside += p if i in pool else 0.0
        apart += (psi[i] / count - p) ** 2
        both += variance(pi[i]) + variance(psi[i])
    assert effective_size(outer, corrected=False) == pytest.approx(1.0 / squares, rel=1e-12)
    assert effective_size(outer) == pytest.approx(1.0 / (squares - noise), rel=1e-12)
    assert captured(outer, torch.tensor(pool)) == pytest.approx(inside, rel=1e-12)
    assert discrepancy(inner, outer, corrected=False) == pytest.approx(apart, rel=1e-12)
    assert discrepancy(inner, outer) == pytest.approx(apart - both, rel=1e-9)


def test_a_weighted_selector_has_its_exact_figures() -> None:
    """Of one client drawn by size: p_i = n_i / n, and n_i / Σ_I n within a pool."""
    state, n = by_size().init(small_problem(small_federation(SIZES))), len(SIZES)
    pool = torch.tensor([1, 2, 4, 7])
    total, inside = sum(SIZES), sum(SIZES[i] for i in pool.tolist())
    apart = sum((SIZES[i] / inside * (i in pool.tolist()) - SIZES[i] / total) ** 2 for i in range(n))
    outer = [inclusion(by_size(), state, 1, torch.arange(n), n, keys.root(t)) for t in range(40)]
    inner = [inclusion(by_size(), state, 1, pool, n, keys.root(100 + t)) for t in range(40)]
    for i in range(n):
        near([float(found.shares[i]) for found in outer], SIZES[i] / total, least=0.03)
    near([1.0 / effective_size(found) for found in outer], sum((s / total) ** 2 for s in SIZES), least=0.02)
    near([captured(found, pool) for found in outer], inside / total, least=0.03)
    near([discrepancy(*both) for both in zip(inner, outer, strict=True)], apart, least=0.02)


def test_two_drawn_by_size() -> None:
    """π_i = w_i + Σ_{j ≠ i} w_j w_i / (1 - w_j)."""
    state, n, draws = by_size().init(small_problem(small_federation(SIZES))), len(SIZES), 4000
    w = [size / sum(SIZES) for size in SIZES]
    found = inclusion(by_size(), state, 2, torch.arange(n), n, keys.root(5), draws=draws)
    for i in range(n):
        pi = w[i] + sum(w[j] * w[i] / (1.0 - w[j]) for j in range(n) if j != i)
        assert abs(float(found.probabilities[i]) - pi) < 4.0 * math.sqrt(pi * (1.0 - pi) / draws)


class First(NamedTuple):
    """A selector that always takes the first of a pool."""

    def choose(self, state: Any, count: int, pool: Tensor, key: Tensor) -> Tensor:
        return pool[:count]


def test_a_selector_without_chance_has_no_noise() -> None:
    outer = inclusion(First(), (), 4, torch.tensor([1, 2, 5, 7, 8]), 10, keys.root(0), draws=2)
    assert outer.probabilities.tolist() == [0, 1, 1, 0, 0, 1, 0, 1, 0, 0]
    assert effective_size(outer) == effective_size(outer, corrected=False) == 4.0
    assert captured(outer, torch.tensor([2, 7, 8])) == 0.5
    inner = inclusion(First(), (), 4, torch.tensor([1, 5, 7, 8]), 10, keys.root(0), draws=2)
    assert discrepancy(inner, outer) == pytest.approx(2 / 16)
    assert discrepancy(outer, outer) == 0.0


def test_draws_that_never_meet_show_no_limit() -> None:
    found = inclusion(First(), (), 1, torch.arange(3), 3, keys.root(0), draws=2)
    assert effective_size(found._replace(probabilities=torch.tensor([0.5, 0.5, 0.0]).double())) == math.inf


def test_tables_over_head_counts_and_pools() -> None:
    state, n = by_size().init(small_problem(small_federation(SIZES))), len(SIZES)
    everybody, key = torch.arange(n), keys.root(8)
    found = statistics(by_size(), state, everybody, n, key, draws=20, pools=3, inner_draws=10)
    assert found.counts.tolist() == found.sizes.tolist() == [1, 6]
    for column, m in enumerate([1, 6]):
        outer = inclusion(by_size(), state, m, everybody, n, keys.fold(key, "among all"), draws=20)
        assert float(found.effective[column]) == effective_size(outer)
        for row, size in enumerate([1, 6]):
            inside, apart = [], []
            for b in range(3):
                word = keys.fold(key, "pools", size, b)
                pool = by_size().choose(state, size, everybody, word)
                inside.append(captured(outer, pool))
                if m <= size:
                    apart.append(discrepancy(inclusion(by_size(), state, m, pool, n, word, draws=10), outer))
            assert float(found.captured[row, column]) == pytest.approx(sum(inside) / 3)
            if apart:
                assert float(found.discrepancy[row, column]) == pytest.approx(sum(apart) / 3)
            else:
                assert math.isnan(found.discrepancy[row, column])


def test_the_published_numbers_of_draws() -> None:
    """R_π = 200 and T_in = 200 draws, R_b = 20 pools, and grids from 1 in steps of 5."""
    asked: list[tuple[int, int]] = []

    class Counting(NamedTuple):
        def choose(self, state: Any, count: int, pool: Tensor, key: Tensor) -> Tensor:
            asked.append((count, pool.numel()))
            return uniform().choose(state, count, pool, key)

    found = statistics(Counting(), (), torch.arange(12), 12, keys.root(0))
    assert found.counts.tolist() == found.sizes.tolist() == grid(12).tolist() == [1, 6, 11]
    assert asked.count((1, 12)) == asked.count((6, 12)) == asked.count((11, 12)) == 200 + 20
    assert asked.count((1, 6)) == asked.count((1, 11)) == asked.count((6, 11)) == 20 * 200
    assert len(asked) == 3 * (200 + 20) + 6 * 20 * 200
    # V9 in one table: whoever draws the pool, every one of them is alike
    torch.testing.assert_close(found.captured, (found.sizes / 12.0).double()[:, None].expand(3, 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", registry.builtin())
def test_nothing_changes(name: str) -> None:
    """Neither the state of a participation after some rounds nor torch's generator; the same key gives the same."""
    options = facts(registry.get(name)).get("examples", ({},))[0]
    chosen = selection(name, count={"name": "isp", "start": 8, "warmup": 1, "period": 2}, **options)
    problem = small_problem(small_federation([3 + (7 * i) % 11 for i in range(30)]))
    strategy = Surveyed(compose("fedavg", participation=chosen), chosen, Batches(size=None))
    state = play(problem, strategy, 4).state.participation
    before, generator = copy.deepcopy(state), torch.get_rng_state()
    once, twice = (
        statistics(
            chosen, state, problem.pool, 30, keys.root(1), counts=torch.tensor([2, 7]), sizes=torch.tensor([9]),
            draws=5, pools=2, inner_draws=5,
        )
        for _ in range(2)
    )  # fmt: skip
    assert torch.equal(generator, torch.get_rng_state())
    was, is_ = pytree.tree_flatten(before), pytree.tree_flatten(state)
    assert was[1] == is_[1]
    for one, other in zip(was[0], is_[0], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(once, twice, rtol=0, atol=0, equal_nan=True)
    assert bool(torch.isfinite(once.captured).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 9}, r"9 clients are asked for and the pool has 8; give a count of 1 \.\.\. 8"),
        ({"count": 0}, "0 clients are asked for and the pool has 8"),
        ({"pool": torch.arange(0)}, "the pool is empty"),
        ({"pool": torch.tensor([0, 8])}, r"increasing ids from 0 to 7 is needed; \[0, 8\] was given"),
        ({"pool": torch.tensor([-1, 2])}, r"increasing ids from 0 to 7 is needed; \[-1, 2\] was given"),
        ({"pool": torch.tensor([3, 3])}, r"increasing ids from 0 to 7 is needed; \[3, 3\] was given"),
        ({"draws": 1}, "at least 2 draws are needed, for their variance; 1 was given"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"count": 2, "pool": torch.arange(8), "clients": 8, "key": keys.root(0)}
    with pytest.raises(FedoptError, match=message):
        inclusion(uniform(), (), **(given | change))


def test_bad_input_for_tables() -> None:
    everybody = torch.arange(8)
    with pytest.raises(FedoptError, match="the pool is empty"):
        statistics(uniform(), (), everybody[:0], 8, keys.root(0))
    with pytest.raises(FedoptError, match="9 clients are asked for and the pool has 8"):
        statistics(uniform(), (), everybody, 8, keys.root(0), counts=grid(3), sizes=torch.tensor([9]), draws=2)
    with pytest.raises(FedoptError, match="at least one pool of each size is needed; 0 was given"):
        statistics(uniform(), (), everybody, 8, keys.root(0), pools=0)


def test_a_pool_is_not_compared_at_another_head_count() -> None:
    one, two = (inclusion(uniform(), (), count, torch.arange(8), 8, keys.root(0), draws=2) for count in (1, 2))
    with pytest.raises(FedoptError, match="1 of 8 and 2 of 8 were given"):
        discrepancy(one, two)
    with pytest.raises(FedoptError, match="1 of 8 and 1 of 9 were given"):
        discrepancy(one, inclusion(uniform(), (), 1, torch.arange(8), 9, keys.root(0), draws=2))
