"""Krum and Multi-Krum: the updates that are closest to most others."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._distances import sq_distances
from fedopt.registry import declare
from fedopt.types import FedoptError


@declare(
    reference="Blanchard, El Mhamdi, Guerraoui, Stainer 2017, 'Machine Learning with Adversaries: Byzantine Tolerant"
    " Gradient Descent', section 4; Multi-Krum: section 6",
    scope="vector",
    requires=lambda f, m: "n >= 2f + 3" if 2 * f + 3 >= m else "n >= m",
    admits=lambda n, f, m: n >= max(2 * f + 3, m),
    examples=({"f": 2}, {"f": 2, "m": 3}),
)
def krum(
    updates: Tensor, *, f: Annotated[int, pydantic.Field(ge=0)], m: Annotated[int, pydantic.Field(ge=1)] = 1
) -> Tensor:
    """The mean of the m updates with the smallest sums of squared distances to their n - f - 2 nearest others.

        score(i) = Σ ‖xᵢ - xⱼ‖² over the n - f - 2 rows j ≠ i nearest to i
        delta = (1/m) Σ of the m rows with the smallest scores

    Equal scores go to the row that stands first (the paper's smallest identifier).

    updates: `[n, d]`.
    f: number of attackers to withstand.
    m: number of updates kept; 1 is Krum, more is Multi-Krum, n is the plain mean.
    Returns `[d]`.
    Raises FedoptError unless n >= 2f + 3 and n >= m.

    Differences from the paper: it asks for 2f + 2 < n and this is the same; its resilience proof is for m = 1, and it
    leaves m to the user. Client weights play no part.
    """
    n = updates.shape[0]
    if n < max(2 * f + 3, m):
        raise FedoptError(f"krum with f = {f}, m = {m} needs n >= max(2f + 3, m) = {max(2 * f + 3, m)} rows, got {n}")
    sq = sq_distances(updates).fill_diagonal_(torch.inf)
    scores = torch.topk(sq, n - f - 2, dim=1, largest=False, sorted=False).values.sum(dim=1)
    best = torch.argsort(scores, stable=True)[:m]
    return updates[best].mean(dim=0)
