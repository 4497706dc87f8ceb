"""Stochastic rounding, and vectors in buckets."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt import keys


def rounded(y: Tensor, key: Tensor) -> Tensor:
    """floor(y + u), u uniform on [0, 1), another for each entry of `y [m]` >= 0: an integer, y on average."""
    return torch.floor(y + keys.uniform(key, y.shape[-1], dtype=y.dtype))


def buckets(numel: int, size: int | None) -> tuple[int, int]:
    """How many buckets, and how long each; `None` is one for all."""
    size = min(size or numel, numel) or 1
    return -(-numel // size), size


def cut(x: Tensor, size: int | None) -> Tensor:
    """`[d] -> [buckets, size]`, the last one filled with 0."""
    count, size = buckets(x.shape[-1], size)
    return torch.nn.functional.pad(x, (0, count * size - x.shape[-1])).reshape(count, size)


def norms(rows: Tensor, norm: str) -> Tensor:
    """`[buckets, size] -> [buckets]`: the Euclidean norm, "l2", or the largest magnitude, "max"."""
    largest = rows.abs().amax(dim=1)
    if norm == "max":
        return largest
    # squares of the entries alone may leave float32
    safe = torch.where(largest > 0, largest, 1.0)
    norm_of = largest * (rows / safe[:, None]).square().sum(dim=1).sqrt()
    # a norm beyond the largest float: any number from the largest magnitude on will do in its place
    return norm_of.clamp(max=torch.finfo(rows.dtype).max)


def mean(x: Tensor, count: Tensor | int) -> Tensor:
    """Σ xᵢ / count, also where the sum leaves float32."""
    return (x.sum(dim=-1, dtype=torch.float64) / count).to(x.dtype)
