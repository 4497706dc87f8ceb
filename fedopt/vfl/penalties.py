"""Regularisers of a party's weights: r(x) = λ ‖x‖² / 2 + μ ‖x‖₁, the elastic net and its two ends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Penalty(NamedTuple):
    """l2 is λ, whose part is smooth; l1 is μ, whose part is taken by its proximal map."""

    l2: float
    l1: float

    def value(self, x: Tensor) -> Tensor:
        """r(x), a scalar."""
        return 0.5 * self.l2 * x.square().sum() + self.l1 * x.abs().sum()

    def gradient(self, x: Tensor) -> Tensor:
        """Of the smooth part, λ x."""
        return self.l2 * x

    def prox(self, v: Tensor, gamma: Tensor | float) -> Tensor:
        """argmin_x γ μ ‖x‖₁ + ‖x - v‖² / 2: entries moved towards 0 by γ μ, and not beyond it."""
        if self.l1 == 0:
            return v
        return v.sign() * (v.abs() - gamma * self.l1).clamp(min=0.0)
