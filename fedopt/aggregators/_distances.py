"""Squared distances between all pairs of rows, for rules that compare clients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 1 << 18  # entries in float64 at a time
_CANCELLED = 1e-4


def sq_distances(updates: Tensor) -> Tensor:
    """‖xᵢ - xⱼ‖² for all pairs: `updates [n, d]` -> `[n, n]` float64, symmetric, never negative, 0 on the diagonal.

    ‖xᵢ‖² + ‖xⱼ‖² - 2 xᵢ·xⱼ in float64 where that loses at most four digits; for the other pairs, nearly equal rows or
    rows whose squares overflow, the sum of the squared differences. No copy of the updates is made: the work goes
    through them in blocks of columns, O(n² + block) memory.
    """
    n = updates.shape[0]
    gram = updates.new_zeros(n, n, dtype=torch.float64)
    for rows in _blocks(updates):
        gram.addmm_(rows, rows.T)
    sq_norms = gram.diagonal()
    either = sq_norms[:, None] + sq_norms
    sq = torch.triu(either - 2.0 * gram, diagonal=1)
    # also false for NaN, which is infinity minus infinity
    exact = sq >= _CANCELLED * either
    i, j = torch.nonzero(torch.triu(~exact, diagonal=1), as_tuple=True)
    sq[i, j] = _of_pairs(updates, i, j)
    return sq + sq.T


def _of_pairs(updates: Tensor, i: Tensor, j: Tensor) -> Tensor:
    sq = updates.new_zeros(i.numel(), dtype=torch.float64)
    if i.numel() == 0:
        return sq
    for rows in _blocks(updates):
        for part in torch.arange(i.numel(), device=updates.device).split(updates.shape[0]):
            differences = rows[i[part]] - rows[j[part]]
            sq[part] += torch.linalg.vecdot(differences, differences)
    return sq


def _blocks(updates: Tensor) -> Iterator[Tensor]:
    for block in updates.split(max(1, _BLOCK // updates.shape[0]), dim=1):
        yield block.to(torch.float64)
