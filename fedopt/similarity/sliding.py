"""The numbers and steps of accelerated extragradient, for r = q + p of which p is communicated."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Sliding(NamedTuple):
    """Step sizes for r that is μ-strongly convex and p that is L_p-smooth."""

    tau: float
    theta: float
    eta: float
    alpha: float

    @property
    def rho(self) -> float:
        """1/θ, weight of the proximal term."""
        return 1.0 / self.theta

    def ahead(self, x: Tensor, x_f: Tensor) -> Tensor:
        """x_g = τ x + (1 - τ) x_f."""
        return self.tau * x + (1.0 - self.tau) * x_f

    def after(self, x: Tensor, x_f: Tensor, slope: Tensor) -> Tensor:
        """x + η α (x_f - x) - η ∇r(x_f)."""
        return x + self.eta * self.alpha * (x_f - x) - self.eta * slope


def sliding(mu: float, smooth: float, factor: float = 1.0) -> Sliding:
    """τ = min{1, √μ / (2 √L_p)}, θ = 1/(2 L_p), η = min{1/(2μ), 1/(2 √(μ L_p))}, α = μ; θ and η times a factor."""
    root = math.sqrt(mu * smooth)
    return Sliding(
        tau=min(1.0, 0.5 * math.sqrt(mu / smooth)),
        theta=factor / (2.0 * smooth),
        eta=factor * min(0.5 / mu, 0.5 / root),
        alpha=mu,
    )
