"""Counter keys: reproducible, independent, the same alone and under vmap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from fedopt import keys

MASK = (1 << 64) - 1


def splitmix_finaliser(z: int) -> int:
    """Steele, Lea, Flood 2014, figure 17 (variant 13 constants of SplitMix64), in Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z


@given(st.integers(0, 2**62))
def test_root_is_the_published_hash(seed: int) -> None:
    assert int(keys.root(seed)) == signed(splitmix_finaliser((seed + 0x9E3779B97F4A7C15) & MASK))


@given(st.integers(0, 2**62), st.integers(1, 40))
def test_bits_are_the_hash_of_a_counter(seed: int, n: int) -> None:
    key = keys.root(seed)
    start = splitmix_finaliser((int(key) + 0x9E3779B97F4A7C15) & MASK)
    wanted = [signed(splitmix_finaliser((start + i * 0x9E3779B97F4A7C15) & MASK)) for i in range(1, n + 1)]
    assert keys.bits(key, n).tolist() == wanted


def test_words_are_a_piece_of_the_bits() -> None:
    key = keys.root(3)
    for start, stop in ((0, 9), (4, 7), (9, 9)):
        assert keys.words(key, start, stop).tolist() == keys.bits(key, 9)[start:stop].tolist()


def test_fold_depends_on_every_part_and_on_their_order() -> None:
    key = keys.root(1)
    parts = [(1,), (2,), (1, 2), (2, 1), ("a",), ("b",), ("a", 1), (1, "a"), (0,), (0, 0), (-1,)]
    assert len({int(keys.fold(key, *p)) for p in parts}) == len(parts)


def test_fold_over_a_tensor_is_fold_over_its_entries() -> None:
    key, clients = keys.root(5), torch.tensor([3, 0, 17])
    assert keys.fold(key, "client", clients).tolist() == [int(keys.fold(key, "client", c)) for c in clients.tolist()]


LONG = st.integers(-(2**63), 2**63 - 1)


@given(LONG, st.lists(LONG | st.sampled_from(["client", "batch", ""]), max_size=4))
def test_folds_of_single_numbers_are_those_of_tensors(key: int, parts: list[int | str]) -> None:
    one, many = torch.tensor(key), torch.tensor([key, 1])
    wanted = int(keys.fold(many, *parts)[0])
    assert keys.fold(one, *parts).shape == () and int(keys.fold(one, *parts)) == wanted
    assert int(keys.fold(one, *(torch.tensor(p) if isinstance(p, int) else p for p in parts))) == wanted
    assert int(vmap(lambda k: keys.fold(k, *parts))(many)[0]) == wanted
    last = keys.fold(one, *parts, torch.tensor([7, key])).tolist()
    assert last == [int(keys.fold(one, *parts, 7)), int(keys.fold(one, *parts, key))]


def test_an_integer_of_more_than_63_bits_is_refused() -> None:
    with pytest.raises((ValueError, RuntimeError, OverflowError)):
        keys.fold(keys.root(1), 2**63)


def test_everything_is_the_same_under_vmap() -> None:
    many = keys.fold(keys.root(2), torch.arange(7))
    for draw in (lambda k: keys.bits(k, 3, 4), lambda k: keys.uniform(k, 5), lambda k: keys.normal(k, 6)):
        stacked = vmap(draw)(many)
        for i in range(7):
            torch.testing.assert_close(stacked[i], draw(many[i]), rtol=0, atol=0)


def test_uniform_and_normal_have_their_distributions() -> None:
    for dtype in (torch.float32, torch.float64):
        uniform = keys.uniform(keys.root(1), 50_000, dtype=dtype)
        assert uniform.dtype == dtype
        assert float(uniform.min()) >= 0.0 and float(uniform.max()) < 1.0
        assert stats.kstest(uniform.double().numpy(), "uniform").pvalue > 0.01
        normal = keys.normal(keys.root(1), 50_000, dtype=dtype)
        assert stats.kstest(normal.double().numpy(), "norm").pvalue > 0.01


def test_streams_of_neighbouring_keys_are_uncorrelated() -> None:
    rows = torch.stack([keys.uniform(keys.fold(keys.root(0), i), 4096, dtype=torch.float64) for i in range(40)])
    off = torch.corrcoef(rows) - torch.eye(40, dtype=torch.float64)
    assert float(off.abs().max()) < 5.0 / math.sqrt(4096)


def test_permutation_is_uniform_over_orders() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for i in range(6000):
        order = tuple(keys.permutation(keys.fold(keys.root(3), i), 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 5))
def test_rows_of_permutations_are_the_permutations(sizes: list[int], extra: int) -> None:
    many = keys.fold(keys.root(9), torch.arange(len(sizes)))
    rows = keys.permutations(many, torch.tensor(sizes), max(sizes) + extra)
    for i, size in enumerate(sizes):
        assert rows[i, :size].tolist() == keys.permutation(many[i], size).tolist()
        assert sorted(rows[i, size:].tolist()) == list(range(size, max(sizes) + extra))


def first_different(key: int, population: int, count: int) -> list[int]:
    """One word of the published hash after another, until so many different values have come."""
    start = splitmix_finaliser((key + 0x9E3779B97F4A7C15) & MASK)
    seen: dict[int, None] = {}  # in the order of arrival
    i = 0
    while len(seen) < count:
        i += 1
        seen[(splitmix_finaliser((start + i * 0x9E3779B97F4A7C15) & MASK) & (MASK >> 1)) % population] = None
    return list(seen)


@given(st.integers(0, 2**62), st.integers(1, 40), st.integers(0, 40))
def test_rows_of_samples_are_the_first_different_values(seed: int, population: int, count: int) -> None:
    count = min(count, population)
    many = keys.fold(keys.root(seed), torch.arange(5))
    rows = keys.samples(many, population, count)
    assert rows.shape == (5, count) and rows.dtype == torch.int64
    for key, row in zip(many.tolist(), rows.tolist(), strict=True):
        assert row == first_different(key, population, count)


def test_a_sample_is_the_front_of_a_permutation_or_of_a_sequence() -> None:
    key = keys.root(4)
    for population, count in ((5, 5), (100, 3), (keys.SMALL, 1), (50_000, 7_000)):
        assert keys.sample(key, population, count).tolist() == keys.permutation(key, population)[:count].tolist()
    for population, count in ((50_000, 6_000), (10**6, 1000), (10**12, 3), (10**6, 0)):
        got = keys.sample(key, population, count)
        assert got.tolist() == first_different(int(key), population, count)


def test_every_ordered_sample_is_equally_likely() -> None:
    rows = keys.samples(keys.fold(keys.root(7), torch.arange(12_000)), 5, 3)
    counts: dict[tuple[int, ...], int] = {}
    for row in rows.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert len(counts) == 5 * 4 * 3
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_a_sample_of_a_large_population_is_uniform() -> None:
    drawn = torch.cat([keys.sample(keys.fold(keys.root(8), i), 10_000, 100) for i in range(300)])
    assert stats.chisquare(torch.bincount(drawn // 100, minlength=100).numpy()).pvalue > 0.01


def test_the_population_costs_a_sample_nothing() -> None:
    key = keys.root(1)
    keys.sample(key, 10**15, 1000)  # a list of it would be 8 PB
    for wrong in (-1, 11):
        for draw in (lambda n: keys.sample(key, 10, n), lambda n: keys.samples(key[None], 10, n)):
            with pytest.raises(ValueError, match=f"{wrong} different integers were asked for, there are 10"):
                draw(wrong)


def test_to_seed_is_a_seed() -> None:
    for i in range(100):
        assert 0 <= keys.to_seed(keys.fold(keys.root(i), "x")) < 2**63
