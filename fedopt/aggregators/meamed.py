"""The mean around the median."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._sorting import over_sorted
from fedopt.registry import declare
from fedopt.types import FedoptError


def nearest_to_median(updates: Tensor, count: int) -> Tensor:
    """In every coordinate, the mean of the `count` values that are nearest to the median: `[n, d] -> [d]`."""
    return over_sorted(updates, lambda rows: _around(rows, count))


def _around(rows: Tensor, count: int) -> Tensor:
    # the nearest values stand together: as long as the next one above is nearer than the lowest, it takes its place
    n = rows.shape[0]
    median = 0.5 * rows[(n - 1) // 2] + 0.5 * rows[n // 2]
    replaced = median - rows[: n - count] > rows[count:] - median
    kept = torch.ones_like(rows, dtype=torch.bool)
    kept[: n - count] = ~replaced
    kept[count:] &= replaced
    return torch.where(kept, rows, 0.0).sum(dim=0) / count


@declare(
    reference="Xie, Koyejo, Gupta 2018, 'Generalized Byzantine-tolerant SGD', arXiv 1802.10116, mean around median",
    scope="coordinate",
    requires="n >= 2f + 1",
    admits=lambda n, f: n >= 2 * f + 1,
    examples=({"f": 2},),
)
def meamed(updates: Tensor, *, f: Annotated[int, pydantic.Field(ge=0)]) -> Tensor:
    """In every coordinate, the mean of the n - f values that are nearest to the median.

        deltaⱼ = (1/(n - f)) Σ of the n - f values xᵢⱼ with the smallest |xᵢⱼ - medianⱼ|

    The median is the value in the middle, or the mean of the two in the middle. Of two values equally far from it, the
    smaller one is nearer.

    updates: `[n, d]`.
    f: number of attackers to withstand.
    Returns `[d]`.
    Raises FedoptError unless n >= 2f + 1.

    Differences from the paper: none; it leaves ties open.
    """
    n = updates.shape[0]
    if n < 2 * f + 1:
        raise FedoptError(f"meamed with f = {f} needs n >= 2f + 1 = {2 * f + 1} rows, got {n}")
    return nearest_to_median(updates, n - f)
