"""Lengths, weights and inner products of rows, over blocks of columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fedopt.types import FedoptError

_BLOCK = 1 << 18  # entries at a time
_LEAST = 1e-20  # below this a sum of squares may have lost some in float32
_PARTS, _LONG = 8, 1 << 12
FAR = 1e300
"""What squared distances beyond float64 are taken for, so that they can be weighed."""


def lengths(updates: Tensor, centre: Tensor | None = None) -> Tensor:
    """‖xᵢ - centre‖, or ‖xᵢ‖ without a centre: `updates [n, d]`, `centre [d]` -> `[n]` float64.

    Rows in float32 are squared in float32, a block at a time, and the blocks summed up in float64: seven digits and
    more at half the cost. Where squares leave the range of float32, everything is done in float64.
    """
    sq = _squared(updates, centre, updates.dtype) if updates.dtype == torch.float32 else None
    if sq is None or not bool(((sq > _LEAST) & (sq < torch.inf)).all()):
        sq = _squared(updates, centre, torch.float64)
    return sq.sqrt()


def _squared(updates: Tensor, centre: Tensor | None, dtype: torch.dtype) -> Tensor:
    sq = updates.new_zeros(updates.shape[0], dtype=torch.float64)
    for rows in _blocks(updates, centre, dtype):
        sq += torch.linalg.vector_norm(rows, dim=1).to(torch.float64).square()
    return sq


def gram(updates: Tensor, centre: Tensor) -> Tensor:
    """(xᵢ - centre)·(xⱼ - centre) for all pairs: `updates [n, d]`, `centre [d]` -> `[n, n]` float64, finite."""
    n = updates.shape[0]
    products = updates.new_zeros(n, n, dtype=torch.float64)
    for rows in _blocks(updates, centre, torch.float64):
        products.addmm_(rows, rows.T)
    return products.nan_to_num_(nan=0.0, posinf=FAR, neginf=-FAR)


def shrinking(lengths: Tensor, bound: Tensor | float) -> Tensor:
    """Factors `[n]` that make rows of these lengths `[n]` at most `bound` long: min(1, bound / length)."""
    return torch.where(lengths > bound, bound / lengths, 1.0)


def shares(weights: Tensor, name: str) -> Tensor:
    """Weights `[n]` divided by their sum, float64. Raises FedoptError, for the rule of this name, unless it can be."""
    total = weights.sum(dtype=torch.float64)
    if not (torch.isfinite(total) and total > 0 and bool((weights >= 0).all())):
        raise FedoptError(
            f"{name} needs weights >= 0 with a positive sum, a smallest of {float(weights.min())} and a sum of"
            f" {float(total)} were given"
        )
    return weights.to(torch.float64) / total


def combined(weights: Tensor, updates: Tensor) -> Tensor:
    """Σᵢ wᵢ xᵢ: `weights [n]` in any dtype, `updates [n, d]` -> `[d]` in the dtype of the updates.

    Long rows are cut into parts that threads share; a product of a vector and a matrix is the work of one alone. The
    parts do not depend on how many threads there are.
    """
    weights, (n, d) = weights.to(updates.dtype), updates.shape
    if n == 1 or d < _PARTS * _LONG:
        return weights @ updates
    whole = d - d % _PARTS
    parts = updates[:, :whole].unflatten(1, (_PARTS, -1)).transpose(0, 1)
    sums = torch.bmm(weights.expand(_PARTS, 1, n), parts).flatten()
    return sums if whole == d else torch.cat([sums, weights @ updates[:, whole:]])


def _blocks(updates: Tensor, centre: Tensor | None, dtype: torch.dtype) -> Iterator[Tensor]:
    columns = max(1, _BLOCK // updates.shape[0])
    for start in range(0, updates.shape[1], columns):
        block = updates[:, start : start + columns].to(dtype)
        yield block if centre is None else block - centre[start : start + columns]
