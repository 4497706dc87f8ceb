"""Trust in clients that is kept by id over rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.aggregators import _rows


def first(n: int) -> Tensor:
    """Equal trust in n clients, `[n]` float64, sum 1."""
    return torch.full((n,), 1.0 / n, dtype=torch.float64)


def moved(trust: Tensor, clients: Tensor, towards: Tensor, beta: float) -> Tensor:
    """The trust `[N]` after v_i <- (1 - beta) v_i + beta V r_i for the clients `[n]` of this exchange.

    `towards [n]` are the r_i, with sum 1, and V is what these clients held of the trust before, so that the sum over
    all clients stays 1 and who does not take part keeps his own.
    """
    own = trust[clients]
    new = (1.0 - beta) * own + beta * own.sum() * towards
    return trust.index_copy(0, clients, new)


def shares(weights: Tensor) -> Tensor:
    """Weights divided by their sum; equal ones where the sum is 0."""
    total = weights.sum()
    return weights / total if bool(total > 0) else torch.full_like(weights, 1.0 / weights.numel())


def combined(weights: Tensor, updates: Tensor) -> Tensor:
    """Σ wᵢ xᵢ over the rows of positive weight alone: what is not trusted does not touch the result, be it infinite."""
    used = weights > 0
    if bool(used.all()):
        return _rows.combined(weights, updates)
    return _rows.combined(weights[used], updates[used])
