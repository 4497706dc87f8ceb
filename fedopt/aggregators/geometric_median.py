"""The geometric median by the smoothed Weiszfeld algorithm, robust federated aggregation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators._rows import FAR, combined, gram, shares
from fedopt.registry import declare
from fedopt.types import Info, State

_NEAR = 1e4
"""Up to this ratio of the distances from the medoid, the inner products follow from the distances, digits enough."""


@declare(
    reference="Pillutla, Kakade, Harchaoui 2022, 'Robust Aggregation for Federated Learning', arXiv 1912.13445, the"
    " smoothed Weiszfeld algorithm",
    scope="vector",
    examples=({}, {"weighted": False}, {"smoothing": 0.5, "iterations": 3}),
)
@dataclass(frozen=True)
class geometric_median:
    """The point with the smallest weighted sum of distances to the rows, up to smoothing.

        delta = argmin_z Σᵢ αᵢ ‖xᵢ - z‖,    αᵢ = wᵢ / Σⱼ wⱼ
        βᵢ <- αᵢ / max(ν, ‖xᵢ - z‖),   z <- Σᵢ βᵢ xᵢ / Σᵢ βᵢ     until z rests

    z is always a mean of the rows with weights p, so that the rows are read two or three times whatever the number of
    iterations: each of them works on the n x n inner products of the rows around their medoid, by which no distance
    loses its digits, be some rows as far as 1e30 and z as near to a row as it likes.

    smoothing: ν, below which distances count as ν.
    iterations: at most so many.
    tolerance: z rests when it moved by at most this share of the harmonic mean of the distances. (Their plain mean, and
        the sum that is minimised, grow with the farthest row, so a single one could end the search at once.)
    weighted: α from the clients' weights; False takes each client for one.

    Returns `[d]` from `updates [n, d]`; info has p as `trust [n]` and the number of `iterations`.
    Raises FedoptError for weights without a positive finite sum.

    Differences from the paper: it begins at the mean and ends after a few iterations, or when the sum falls by little;
    here z begins at the medoid smoothed by the median distance to it, far rows cost no iterations, and the minimum is
    reached. Weights are told by the clients: with `weighted` an attacker may claim more than half of all samples.
    """

    smoothing: Annotated[float, pydantic.Field(gt=0.0)] = 1e-6
    iterations: Annotated[int, pydantic.Field(ge=1)] = 1000
    tolerance: Annotated[float, pydantic.Field(ge=0.0)] = 1e-6
    weighted: bool = True

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State, *, weights: Tensor) -> tuple[Tensor, State, Info]:
        """`updates [n, d]`, weights `[n]` -> delta `[d]`."""
        n = updates.shape[0]
        alpha = shares(weights if self.weighted else torch.ones_like(weights), "geometric_median")
        sq = sq_distances(updates).clamp_(max=FAR)
        medoid = int((sq.sqrt() @ alpha).argmin())
        away = sq[medoid].sqrt()
        usual = float(away.sort().values[n // 2])
        pull = alpha / away.clamp(min=max(usual, self.smoothing))
        p = pull / pull.sum()
        if float(away.max()) <= _NEAR * usual:
            inner = 0.5 * (sq[medoid][:, None] + sq[medoid] - sq)
        else:
            inner = gram(updates, updates[medoid])
        sq_norms, done, rests = inner.diagonal(), 0, False
        while not rests and done < self.iterations:
            towards = inner @ p
            away = (sq_norms - 2.0 * towards + p @ towards).clamp(min=0.0).sqrt()
            pull = alpha / away.clamp(min=self.smoothing)
            before, p = p, pull / pull.sum()
            step, done = p - before, done + 1
            rests = float((step @ inner @ step).clamp(min=0.0).sqrt() * pull.sum()) <= self.tolerance
        return combined(p, updates), state, {"trust": p, "iterations": done}
