"""Smallest maximum eigenvalue averaging: the rows that spread least in any direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators import _subsets
from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators._rows import FAR, combined
from fedopt.registry import declare
from fedopt.types import Info, State

MOST = 100_000
"""Subsets that are looked at, at the most: some seconds."""


@declare(
    reference="Allouah, Guerraoui, Gupta, Pinot, Stephan 2023, 'On the Privacy-Robustness-Utility Trilemma in"
    " Distributed Learning', arXiv 2302.04787, smallest maximum eigenvalue averaging",
    scope="vector",
    requires="n >= 2f + 1",
    admits=lambda n, f: _subsets.admitted(n, f, MOST),
    examples=({"f": 1},),
)
@dataclass(frozen=True)
class smea:
    """The mean of the n - f rows whose covariance has the smallest largest eigenvalue.

        S = argmin over subsets of n - f rows of λmax( (1/|S|) Σ (xᵢ - μ)(xᵢ - μ)ᵀ ),    delta = μ(S), the mean of S

    The largest eigenvalue is computed exactly: that of the d x d covariance is that of the matrix of the inner products
    (xᵢ - μ)·(xⱼ - μ) / |S|, and these follow from the distances between the rows. Of equal ones the first subset wins.

    f: number of attackers to withstand.

    Returns `[d]` from `updates [n, d]`; info has 1/(n - f) for the rows in S and 0 for the others as `trust [n]`.
    Raises FedoptError unless n >= 2f + 1, and for more than 100,000 subsets.

    Differences from the paper: none; programs that take power iterations from a random vector only estimate the
    eigenvalue, and may choose another subset.
    """

    f: Annotated[int, pydantic.Field(ge=0)]

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State) -> tuple[Tensor, State, Info]:
        """`updates [n, d]` -> delta `[d]`."""
        n = updates.shape[0]
        _subsets.check("smea", n, self.f, MOST)
        sq = sq_distances(updates).clamp_(max=FAR)
        trust = sq.new_zeros(n)
        trust[_flattest(sq, n - self.f)] = 1.0 / (n - self.f)
        return combined(trust, updates), state, {"trust": trust}


def _flattest(sq: Tensor, k: int) -> Tensor:
    """The k rows whose covariance has the smallest largest eigenvalue: int64 `[k]`."""
    least, best = torch.inf, torch.arange(k)
    for subset in _subsets.subsets(sq.shape[0], k):
        among = sq[subset[:, :, None], subset[:, None, :]]
        from_mean = among.mean(dim=2)
        products = 0.5 * (from_mean[:, :, None] + from_mean[:, None, :] - among - from_mean.mean(1)[:, None, None])
        largest = torch.linalg.eigvalsh(products)[:, -1]
        first = int(largest.argmin())
        if float(largest[first]) < least:
            least, best = float(largest[first]), subset[first]
    return best
