"""Directions of one length."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from fedopt.optimizers.directions.gaussian import length, like
from fedopt.registry import declare
from fedopt.types import Named


@declare(reference="Nesterov, Spokoiny 2017, Random Gradient-Free Minimization of Convex Functions, section 2")
@dataclass(frozen=True)
class sphere:
    """z uniform on the sphere of radius √d, d entries of all tensors together; E (d/dt f(x + t z)) z = ∇ f(x)."""

    def draw(self, key: Tensor, params: Named) -> Named:
        z = like(key, params)
        numel = sum(x.numel() for x in params.values())
        radius = math.sqrt(numel) / length(z).clamp(min=1e-30)
        return {name: radius * x for name, x in z.items()}
