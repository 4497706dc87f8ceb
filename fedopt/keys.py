"""Counter keys: random numbers as pure functions of integers.

A key is an int64 scalar. `fold(key, ...)` derives another key, `bits`, `uniform`, `normal`, `permutation` and `sample`
hash a counter with it. Nothing is drawn from a generator, so a client's numbers depend on (seed, purpose, exchange,
client) alone: they are the same one client at a time and under vmap, whoever else takes part and wherever the work
runs.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
figure 17) over the counter times the golden-ratio increment. torch integers wrap around modulo 2^64, as needed.
"""

from __future__ import annotations

import functools
import hashlib
import math

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_ALL, _HALF = (1 << 64) - 1, 1 << 63

SMALL = 4096
"""Up to this size, a population is permuted as a whole when some of it are drawn: a fraction of a millisecond."""


def _mix(z: Tensor) -> Tensor:
    # `>>` is arithmetic on int64, so the sign bits that it shifts in are masked away
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mix_int(z: int) -> int:
    # the same on Python's integers, modulo 2^64
    z = (z ^ (z >> 30)) * _MIX_1 & _ALL
    z = (z ^ (z >> 27)) * _MIX_2 & _ALL
    return z ^ (z >> 31)


@functools.lru_cache(maxsize=4096)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest(), "big")


def _scalar(z: int) -> Tensor:
    return torch.tensor((z & _ALL) - 2 * (z & _HALF), dtype=torch.int64)


def _word(part: int | str | Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return part
    return torch.tensor(_number(part) if isinstance(part, str) else part, dtype=torch.int64)


def _at_hand(part: int | str | Tensor) -> int | None:
    """The integer that is meant; None for a tensor of several, of a trace, of vmap or of a device."""
    if isinstance(part, str):
        return _number(part)
    if not isinstance(part, Tensor):
        return int(part) if -_HALF <= part < _HALF else None
    if type(part) is not Tensor or part.dim() or part.dtype != torch.int64 or part.device.type != "cpu":
        return None
    return None if is_functorch_wrapped_tensor(part) else int(part.item())


def root(seed: int) -> Tensor:
    """The key of a run, from its seed (any Python integer that fits 63 bits)."""
    return _mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN)


def fold(key: Tensor, *parts: int | str | Tensor) -> Tensor:
    """A new key from `key` and any number of integers, words or integer tensors; broadcasts over tensors."""
    known = _at_hand(key) if parts else None  # operations on tensors of one number take ten times as long
    for part in parts:
        number = None if known is None else _at_hand(part)
        if known is not None and number is not None:
            known = _mix_int(_mix_int((known + _GOLDEN) & _ALL) ^ (number * _GOLDEN & _ALL))
            continue
        if known is not None:
            key, known = _scalar(known), None
        key = _mix(_mix(key + _GOLDEN) ^ (_word(part) * _GOLDEN))
    return key if known is None else _scalar(known)


def bits(key: Tensor, *shape: int) -> Tensor:
    """int64 words with 64 random bits each, of the given shape."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    return _mix(_mix(key + _GOLDEN) + counter * _GOLDEN).reshape(shape)


def words(key: Tensor, start: int, stop: int) -> Tensor:
    """Entries `start : stop` of `bits(key, n)`, whatever n is."""
    counter = torch.arange(start + 1, stop + 1, dtype=torch.int64, device=key.device)
    return _mix(_mix(key + _GOLDEN) + counter * _GOLDEN)


def uniform(key: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform on [0, 1): 24 random bits in float32, 53 in float64."""
    width = 53 if dtype == torch.float64 else 24
    word = (bits(key, *shape) >> (64 - width)) & ((1 << width) - 1)
    return word.to(dtype) * 2.0**-width


def normal(key: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by the Box-Muller transform of two uniform ones."""
    radius = 1.0 - uniform(fold(key, 0), *shape, dtype=dtype)  # in (0, 1], so that the logarithm is finite
    angle = uniform(fold(key, 1), *shape, dtype=dtype) * (2.0 * math.pi)
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(angle)


def permutation(key: Tensor, n: int) -> Tensor:
    """A uniformly random order of 0 ... n-1, int64 `[n]`."""
    return torch.argsort(bits(key, n), stable=True)


def permutations(keys: Tensor, sizes: Tensor, width: int) -> Tensor:
    """Row i starts with a random order of 0 ... sizes[i]-1 and is padded with the indices from sizes[i] on.

    `keys [n]`, `sizes [n]`, result `[n, width]`. Row i begins with `permutation(keys[i], sizes[i])`, whatever the
    width is, so a client walks over its data in the same order alone and in a cohort.
    """
    counter = torch.arange(1, width + 1, dtype=torch.int64, device=keys.device)
    words = _mix(_mix(keys + _GOLDEN)[:, None] + counter * _GOLDEN)
    real = counter[None, :] <= sizes[:, None]
    # two stable sorts: by random word, then real entries before padding
    order = torch.argsort(words, dim=1, stable=True)
    padding = torch.gather(~real, 1, order)
    return torch.gather(order, 1, torch.argsort(padding.to(torch.int8), dim=1, stable=True))


def sample(key: Tensor, population: int, count: int) -> Tensor:
    """`count` different integers of 0 ... population-1 in random order, int64 `[count]`: every order equally likely.

    The front of `permutation(key, population)` in a small population, and wherever an eighth of it is asked for; else
    the row of `samples`, whose time and memory depend on `count` alone.
    """
    _check_count(count, population)
    if population <= max(SMALL, 8 * count):
        return permutation(key, population)[:count]
    return samples(key[None], population, count)[0]


def samples(keys: Tensor, population: int, count: int) -> Tensor:
    """Row i holds the first `count` different values of an endless sequence of uniform ones, int64 `[n, count]`.

    `keys [n]`; the values are 0 ... population-1, and value j of the sequence of row i is `bits(keys[i], ...)[j]`
    without its sign, modulo the population. Time and memory depend on n and `count`, not on the population, as long as
    `count` is a small part of it; the modulus favours small values by population / 2^63.
    """
    _check_count(count, population)
    found = torch.empty(keys.numel(), count, dtype=torch.int64, device=keys.device)
    rows, width = torch.arange(keys.numel(), device=keys.device), count
    while rows.numel() and count:
        counter = torch.arange(1, width + 1, dtype=torch.int64, device=keys.device)
        drawn = (_mix(_mix(keys[rows] + _GOLDEN)[:, None] + counter * _GOLDEN) & ((1 << 63) - 1)) % population
        # a stable sort puts the first of equal values first; the others are repetitions
        ordered, order = torch.sort(drawn, dim=1, stable=True)
        again = torch.zeros_like(drawn, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        new = torch.empty_like(again).scatter_(1, order, ~again)
        rank = new.cumsum(dim=1)
        whole = rank[:, -1] >= count
        found[rows[whole]] = drawn[whole][new[whole] & (rank[whole] <= count)].reshape(-1, count)
        rows, width = rows[~whole], 2 * width
    return found


def _check_count(count: int, population: int) -> None:
    if not 0 <= count <= population:
        raise ValueError(f"{count} different integers were asked for, there are {population}")


def to_seed(key: Tensor) -> int:
    """A non-negative 63-bit integer for libraries that want a seed."""
    return int(key) & ((1 << 63) - 1)
