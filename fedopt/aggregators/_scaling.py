"""A diagonal preconditioner of the server's, for rules that score what they will do with an update."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedopt.types import Trial

Scaling = Literal["none", "adam", "rmsprop"]

BETA = 0.999
"""How much of the second moments stays from one round to the next."""

LEAST = 1e-8
"""Below this share of the largest entry, P is cut off."""


def rescaled(updates: Tensor, moments: Tensor, number: int, trial: Trial, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """P⁻¹Δᵢ for each row of `updates [n, d]`, and the second moments `[d]` for the next round.

        D² <- βₜ D² + (1 - βₜ) g²,    P = max(D, ε max D) · mean(1 / max(D, ε max D))

    g is the gradient of the trial function at x, and βₜ is β for "rmsprop", (β - βᵗ⁺¹) / (1 - βᵗ⁺¹) for "adam", with
    D² = g² in the first round. The mean of 1/P is 1, so that the clients' step size keeps its meaning.

    number: t, the number of the round.
    """
    if scaling == "none":
        return updates, moments
    g = trial.grad(updates.new_zeros(updates.shape[1]))
    if moments.numel() == 0:
        moments = g.square()
    else:
        beta = BETA if scaling == "rmsprop" else (BETA - BETA ** (number + 1)) / (1.0 - BETA ** (number + 1))
        moments = beta * moments + (1.0 - beta) * g.square()
    d = moments.sqrt()
    inverse = 1.0 / torch.maximum(d, LEAST * d.max()).clamp(min=torch.finfo(d.dtype).tiny ** 0.5)
    return updates * (inverse / inverse.mean()), moments
