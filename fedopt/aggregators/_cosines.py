"""Cosines between rows, for rules that look at directions."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 18  # entries in float64 at a time


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """cos(xᵢ, yⱼ) for all pairs: `rows [n, d]`, `others [k, d]` -> `[n, k]` float64 in [-1, 1].

    0 for a row of zeros, and for one whose norm is not finite in float64. Norms are in float64 like the products, so
    that parallel rows have a cosine of 1 up to rounding of that; the work goes through blocks of columns, without a
    copy of the rows.
    """
    n, k = rows.shape[0], others.shape[0]
    dots = rows.new_zeros(n, k, dtype=torch.float64)
    down, across = dots.new_zeros(n), dots.new_zeros(k)
    width = max(1, _BLOCK // max(n, k))
    for start in range(0, rows.shape[1], width):
        left = rows[:, start : start + width].to(torch.float64)
        right = left if others is rows else others[:, start : start + width].to(torch.float64)
        dots.addmm_(left, right.T)
        down += torch.linalg.vecdot(left, left)
        across += torch.linalg.vecdot(right, right)
    ratios = dots / down.sqrt()[:, None] / across.sqrt()
    return ratios.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(-1.0, 1.0)
