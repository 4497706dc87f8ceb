"""Counter keys: random numbers as pure functions of integers.

A key is an int64 scalar. `fold(key, ...)` derives another key, `bits`, `uniform`, `normal` and `permutation` hash a
counter with it. Nothing is drawn from a generator, so a client's numbers depend on (seed, purpose, exchange, client)
alone: they are the same one client at a time and under vmap, whoever else takes part and wherever the work runs.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
figure 17) over the counter times the golden-ratio increment. torch integers wrap around modulo 2^64, as needed.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _mix(z: Tensor) -> Tensor:
    # `>>` is arithmetic on int64, so the sign bits that it shifts in are masked away
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _word(part: int | str | Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return part
    if isinstance(part, str):
        part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=7).digest(), "big")
    return torch.tensor(part, dtype=torch.int64)


def root(seed: int) -> Tensor:
    """The key of a run, from its seed (any Python integer that fits 63 bits)."""
    return _mix(torch.tensor(seed, dtype=torch.int64) + _GOLDEN)


def fold(key: Tensor, *parts: int | str | Tensor) -> Tensor:
    """A new key from `key` and any number of integers, words or integer tensors; broadcasts over tensors."""
    for part in parts:
        key = _mix(_mix(key + _GOLDEN) ^ (_word(part) * _GOLDEN))
    return key


def bits(key: Tensor, *shape: int) -> Tensor:
    """int64 words with 64 random bits each, of the given shape."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    return _mix(_mix(key + _GOLDEN) + counter * _GOLDEN).reshape(shape)


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


def to_seed(key: Tensor) -> int:
    """A non-negative 63-bit integer for libraries that want a seed."""
    return int(key) & ((1 << 63) - 1)
