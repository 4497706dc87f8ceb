"""Minimum diameter averaging: the rows that stand closest together."""

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

MOST = 1_000_000
"""Subsets that are looked at, at the most: some seconds."""


@declare(
    reference="Rousseeuw 1985, 'Multivariate Estimation with High Breakdown Point'; El Mhamdi, Guerraoui, Guirguis,"
    " Hoang, Rouault 2020, 'Genuinely Distributed Byzantine Machine Learning', minimum diameter averaging",
    scope="vector",
    requires="n >= 2f + 1",
    admits=lambda n, f: _subsets.admitted(n, f, MOST),
    examples=({"f": 2},),
)
@dataclass(frozen=True)
class mda:
    """The mean of the n - f rows whose largest distance between two of them is smallest.

        S = argmin over subsets of n - f rows of max {‖xᵢ - xⱼ‖ : i, j in S},    delta = (1/(n - f)) Σ xᵢ, i in S

    Often several subsets share the smallest diameter, which two rows alone decide. Of these it is the one with the
    smallest sum of squared distances between its rows, and of those still equal the one with the first rows.

    f: number of attackers to withstand.

    Returns `[d]` from `updates [n, d]`; info has 1/(n - f) for the rows in S and 0 for the others as `trust [n]`.
    Raises FedoptError unless n >= 2f + 1, and for more than 1,000,000 subsets.

    Differences from the paper: it leaves open which of several subsets of smallest diameter is taken.
    """

    f: Annotated[int, pydantic.Field(ge=0)]

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State) -> tuple[Tensor, State, Info]:
        """`updates [n, d]` -> delta `[d]`."""
        n = updates.shape[0]
        _subsets.check("mda", n, self.f, MOST)
        trust = _tightest(sq_distances(updates).clamp_(max=FAR), n - self.f) / (n - self.f)
        return combined(trust, updates), state, {"trust": trust}


def _tightest(sq: Tensor, k: int) -> Tensor:
    """1 for the k rows of smallest diameter, 0 for the others: `[n]` float64."""
    n = sq.shape[0]
    i, j = torch.triu_indices(n, n, offset=1, device=sq.device)
    # n - k rows left out meet at most (n - k)(n - 1) pairs, so one of the longest pairs is the diameter
    longest = torch.argsort(sq[i, j], descending=True, stable=True)[: (n - k) * (n - 1) + 1]
    i, j = i[longest], j[longest]
    diameters = torch.cat([sq[i, j], sq.new_zeros(1)])
    least, spread, best = torch.inf, torch.inf, sq.new_ones(n)
    for subset in _subsets.subsets(n, k):
        kept = torch.zeros(subset.shape[0], n, dtype=torch.bool, device=sq.device)
        kept.scatter_(1, subset.to(sq.device), True)
        within = torch.cat([kept[:, i] & kept[:, j], kept.new_ones(subset.shape[0], 1)], dim=1)
        diameter = diameters[within.to(torch.uint8).argmax(dim=1)]
        here = float(diameter.min())
        if here > least:
            continue
        tied = kept[diameter == here].to(sq.dtype)
        spreads = (tied @ sq * tied).sum(dim=1)
        first = int(spreads.argmin())
        if here < least or float(spreads[first]) < spread:
            least, spread, best = here, float(spreads[first]), tied[first]
    return best
