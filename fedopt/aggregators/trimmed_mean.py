"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.aggregators._sorting import over_sorted
from fedopt.registry import declare
from fedopt.types import FedoptError


def trimmed(n: int, f: int | None, share: float | None) -> int:
    """How many of n values are cut off at each end. Raises ValueError unless exactly one of f and share is given."""
    if (f is None) == (share is None):
        raise ValueError(f"give exactly one of f (a number of clients) and share (of the clients); {f = }, {share = }")
    # a share of 0.29 of 100 clients is 29 of them, although 0.29 * 100 is just below 29 in floating point
    return f if f is not None else math.floor(share * n + 1e-9)  # type: ignore[operator]


@declare(
    reference="Yin, Chen, Ramchandran, Bartlett 2018, 'Byzantine-Robust Distributed Learning: Towards Optimal"
    " Statistical Rates', definition 2",
    scope="coordinate",
    requires="n >= 2f + 1",
    admits=lambda n, f, share: n >= 2 * trimmed(n, f, share) + 1,
    examples=({"f": 2}, {"share": 0.1}),
)
def trimmed_mean(
    updates: Tensor,
    *,
    f: Annotated[int | None, pydantic.Field(ge=0)] = None,
    share: Annotated[float | None, pydantic.Field(ge=0.0, lt=0.5)] = None,
) -> Tensor:
    """In every coordinate, the mean of what is left when the f smallest and the f largest values are cut off.

        deltaⱼ = (x₍f+1₎ⱼ + … + x₍n-f₎ⱼ) / (n - 2f),    x₍1₎ⱼ <= … <= x₍n₎ⱼ sorted,    f = ⌊share · n⌋ if share is given

    updates: `[n, d]`.
    f: number of values cut off at each end, at least the number of attackers.
    share: β, the share of the clients cut off at each end, below 0.5; in place of f.
    Returns `[d]`.
    Raises FedoptError unless n >= 2f + 1, so the mean of an empty slice is never taken.

    Differences from the paper: βn need not be a whole number and is rounded down; β >= 1/2 is refused.
    """
    n = updates.shape[0]
    f = trimmed(n, f, share)
    if not 0 <= f <= (n - 1) // 2:
        raise FedoptError(f"trimmed_mean with f = {f} needs n >= 2f + 1 = {2 * f + 1} rows, {n} were given")
    return over_sorted(updates, lambda rows: rows[f : n - f].mean(dim=0))
