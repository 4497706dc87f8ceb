"""Counter keys: reproducible, independent, the same alone and under vmap."""

from __future__ import annotations

import math

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


def test_fold_depends_on_every_part_and_on_their_order() -> None:
    key = keys.root(1)
    parts = [(1,), (2,), (1, 2), (2, 1), ("a",), ("b",), ("a", 1), (1, "a"), (0,), (0, 0), (-1,)]
    assert len({int(keys.fold(key, *p)) for p in parts}) == len(parts)


def test_fold_over_a_tensor_is_fold_over_its_entries() -> None:
    key, clients = keys.root(5), torch.tensor([3, 0, 17])
    assert keys.fold(key, "client", clients).tolist() == [int(keys.fold(key, "client", c)) for c in clients.tolist()]


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


def test_to_seed_is_a_seed() -> None:
    for i in range(100):
        assert 0 <= keys.to_seed(keys.fold(keys.root(i), "x")) < 2**63
