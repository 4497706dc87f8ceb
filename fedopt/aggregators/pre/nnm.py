"""Nearest neighbour mixing: every row becomes the mean of those nearest to it."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.aggregators._distances import sq_distances
from fedopt.registry import declare
from fedopt.types import FedoptError


def _mixable(n: int, f: int, include_self: bool) -> bool:
    if f == 0 and not include_self:
        raise ValueError("f = 0 asks for n neighbours of each row, and without itself there are n - 1; give f >= 1")
    return n >= f + 1


@declare(
    reference="Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, 'Fixing by Mixing: A Recipe for Optimal"
    " Byzantine ML under Heterogeneity', arXiv 2302.01772, algorithm 2",
    rows="same",
    requires="n >= f + 1",
    admits=_mixable,
    examples=({"f": 2}, {"f": 2, "include_self": False}),
)
def nnm(updates: Tensor, *, f: Annotated[int, pydantic.Field(ge=0)], include_self: bool = True) -> Tensor:
    """Each row is replaced by the mean of the n - f rows nearest to it.

        yᵢ = (1/(n - f)) Σ of the n - f rows xⱼ with the smallest ‖xⱼ - xᵢ‖

    Equal distances go to the row that stands first. The means are one product with an n x n matrix, so that nothing
    larger than the result is made.

    updates: `[n, d]`.
    f: number of attackers to withstand.
    include_self: whether a row is one of those nearest to it, as in the paper.
    Returns `[n, d]`.
    Raises FedoptError unless n >= f + 1, and for f = 0 without the row itself.

    Differences from the paper: it assumes n >= 2f + 1, and proves nothing for more attackers; the mixture is defined
    all the same, and given. The BANT authors' program leaves out the row itself, which is `include_self = False`.
    """
    n = updates.shape[0]
    try:
        enough = _mixable(n, f, include_self)
    except ValueError as error:
        raise FedoptError(f"nnm: {error}") from None
    if not enough:
        raise FedoptError(f"nnm with f = {f} needs n >= f + 1 = {f + 1} rows, got {n}")
    sq = sq_distances(updates).fill_diagonal_(-1.0 if include_self else float("inf"))
    nearest = sq.argsort(dim=1, stable=True)[:, : n - f]
    mixing = updates.new_zeros(n, n).scatter_(1, nearest, 1.0 / (n - f))
    return mixing @ updates
