"""Bulyan: rows that Krum selects one after another, and in every coordinate those of them around the median."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators.meamed import nearest_to_median
from fedopt.registry import declare
from fedopt.types import FedoptError


@declare(
    reference="El Mhamdi, Guerraoui, Rouault 2018, 'The Hidden Vulnerability of Distributed Learning in Byzantium',"
    " section 4",
    scope="vector",
    requires="n >= 4f + 3",
    admits=lambda n, f: n >= 4 * f + 3,
    examples=({"f": 2}, {"f": 1}),
)
def bulyan(updates: Tensor, *, f: Annotated[int, pydantic.Field(ge=0)]) -> Tensor:
    """Select n - 2f rows by Krum, one after another; then take the mean of the n - 4f values around their median.

        S = {},   n - 2f times:  S gains Krum(rows not in S)
        deltaⱼ = (1/(n - 4f)) Σ of the n - 4f values sⱼ, s in S, with the smallest |sⱼ - medianⱼ(S)|

    Of m rows that are left, Krum takes the one with the smallest sum of squared distances to its m - f - 2 nearest
    others. In the last selections so few count that equal sums are the rule (two rows, each the nearest of the other);
    then the next nearest others decide, and after them the order of the rows.

    updates: `[n, d]`.
    f: number of attackers to withstand; 0 is the plain mean.
    Returns `[d]`.
    Raises FedoptError unless n >= 4f + 3.

    Differences from the paper: it leaves open what Krum does with ties, and with f = 1 and the last three rows, where
    m - f - 2 is 0.
    """
    n = updates.shape[0]
    if n < 4 * f + 3:
        raise FedoptError(f"bulyan with f = {f} needs n >= 4f + 3 = {4 * f + 3} rows, got {n}")
    chosen = _selected(sq_distances(updates), f) if f else slice(None)
    return nearest_to_median(updates[chosen], n - 4 * f)


def _selected(sq: Tensor, f: int) -> Tensor:
    """The rows that Krum selects one after another, n - 2f of them, in ascending order."""
    n = sq.shape[0]
    # each row's others, nearest first; itself, before all, is cut off
    ranked, others = torch.sort(sq.fill_diagonal_(-1.0), dim=1, stable=True)
    ranked, others = ranked[:, 1:], others[:, 1:]
    left, chosen = torch.arange(n, device=sq.device), []
    for m in range(n, 2 * f, -1):
        best = _least(ranked, m - f - 2)
        row = left[best]
        chosen.append(int(row))
        stays = left != row
        ranked, others, left = ranked[stays], others[stays], left[stays]
        near = others != row
        ranked, others = ranked[near].view(m - 1, m - 2), others[near].view(m - 1, m - 2)
    return torch.tensor(sorted(chosen), device=sq.device)


def _least(ranked: Tensor, count: int) -> int:
    """The row with the smallest sum of its first `count` entries; among equal ones by one entry more, and so on."""
    candidates = torch.arange(ranked.shape[0], device=ranked.device)
    for width in range(count, ranked.shape[1] + 1):
        sums = ranked[candidates, :width].sum(dim=1)
        candidates = candidates[sums == sums.min()]
        if candidates.numel() == 1:
            break
    return int(candidates[0])
