"""The covariance-bound agnostic filter: rows lose weight along the direction in which they spread most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators._rows import FAR, combined
from fedopt.registry import declare
from fedopt.types import FedoptError, Info, State


@declare(
    reference="Allouah, Guerraoui, Stephan 2025, 'Towards Trustworthy Federated Learning with Untrusted Participants',"
    " arXiv 2505.01874, algorithm 2",
    scope="vector",
    requires="n >= 2f + 1",
    admits=lambda n, f: n >= 2 * f + 1,
    examples=({"f": 2},),
)
@dataclass(frozen=True)
class caf:
    """A weighted mean, whose weights shrink along the main direction of the covariance, where that was narrowest.

        cᵢ = 1 for all i;  while Σ cᵢ > n - 2f:
            μ = Σ cᵢ xᵢ / Σ cᵢ,    Σ = Σ cᵢ (xᵢ - μ)(xᵢ - μ)ᵀ / Σ cᵢ,    λ, v its largest eigenvalue and the eigenvector
            delta = μ if λ is the smallest so far
            τᵢ = ⟨v, xᵢ - μ⟩²,    cᵢ <- cᵢ (1 - τᵢ / max {τⱼ : cⱼ > 0})

    Each turn takes the weight of one row at least, so there are 2f turns at most. λ and the τᵢ are computed exactly,
    from the n x n inner products of the rows around μ, which follow from the distances between the rows.

    f: number of attackers to withstand; 0 is the plain mean.

    Returns `[d]` from `updates [n, d]`; info has the cᵢ / Σ cᵢ of the delta as `trust [n]` and its λ as `spread`.
    Raises FedoptError unless n >= 2f + 1.

    Differences from the paper: none is meant. The largest τ is sought among the rows that still have weight; a row
    without, however far away, would keep the others from losing any, and the turns from ending. Programs that take one
    power iteration from a random vector only estimate λ and v.
    """

    f: Annotated[int, pydantic.Field(ge=0)]

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State) -> tuple[Tensor, State, Info]:
        """`updates [n, d]` -> delta `[d]`."""
        n = updates.shape[0]
        if n < 2 * self.f + 1:
            raise FedoptError(f"caf with f = {self.f} needs n >= 2f + 1 = {2 * self.f + 1} rows, got {n}")
        trust, spread = _filtered(sq_distances(updates).clamp_(max=FAR), n - 2 * self.f)
        return combined(trust, updates), state, {"trust": trust, "spread": spread}


def _filtered(sq: Tensor, enough: int) -> tuple[Tensor, float]:
    """Weights `[n]` with sum 1, and the largest eigenvalue of the covariance under them."""
    c = sq.new_ones(sq.shape[0])
    best, least = c / c.sum(), torch.inf
    while True:
        p = c / c.sum()
        from_mean = sq @ p
        products = 0.5 * (from_mean[:, None] + from_mean - sq - p @ from_mean)
        root = p.sqrt()
        values, vectors = torch.linalg.eigh(root[:, None] * products * root)
        if float(values[-1]) < least:
            best, least = p, float(values[-1])
        along = torch.where(c > 0, (products @ (root * vectors[:, -1])).abs(), 0.0)
        farthest = along.max()
        if float(farthest) == 0.0:
            return best, least
        c = c * (1.0 - (along / farthest).square())
        if float(c.sum()) <= enough:
            return best, least
