"""Lion."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, algorithm 2")
@dataclass(frozen=True)
class lion:
    """Signs of an interpolation between the gradient and its running mean.

        x ← (1 - η λ) x - η sign(β₁ m + (1 - β₁) g);  m ← β₂ m + (1 - β₂) g               m₀ = 0

    lr: η >= 0. beta1, beta2: in [0, 1). weight_decay: λ >= 0.

    *Differences from the paper*: none.
    """

    lr: Scalar = 1e-4
    beta1: Scalar = 0.9
    beta2: Scalar = 0.99
    weight_decay: Scalar = 0.0

    def init(self, params: Named) -> State:
        """`m`."""
        return {"m": {name: torch.zeros_like(x) for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2 and weight_decay."""
        h = at_params(hyper, params)
        keep, new, m = 1 - h["lr"] * h["weight_decay"], {}, {}
        for name, x in params.items():
            before, g = state["m"][name], grads[name]
            new[name] = keep * x - h["lr"] * (h["beta1"] * before + (1 - h["beta1"]) * g).sign()
            m[name] = h["beta2"] * before + (1 - h["beta2"]) * g
        return new, {"m": m}
