"""Adam-SANIA: Adam without the root."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Abdukhakimov et al. 2023, SANIA: Polyak-type Optimization Framework Leads to Scale Invariant "
    "Stochastic Algorithms, arXiv 2312.17369, equation 16"
)
@dataclass(frozen=True)
class adam_sania:
    """Steps m̂ / v̂, which do not change when features are scaled.

        m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
        x ← (1 - η λ) x - η m̂ / (v̂ + ε)                      m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ); 0 where v̂ + ε = 0

    lr: η >= 0. beta1, beta2: in [0, 1). eps: ε >= 0; with 0, iterates are exactly those of scaled features.
    weight_decay: λ >= 0, decoupled.

    *Differences from the paper*: its Polyak step size is not there; η is.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0

    def init(self, params: Named) -> State:
        """`step`, `m` and `v`."""
        zeros = {part: {name: torch.zeros_like(x) for name, x in params.items()} for part in ("m", "v")}
        return {"step": first_step(params), **zeros}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h = at_params(hyper, params)
        step = state["step"] + 1
        m = {name: h["beta1"] * m + (1 - h["beta1"]) * grads[name] for name, m in state["m"].items()}
        v = {name: h["beta2"] * v + (1 - h["beta2"]) * grads[name] ** 2 for name, v in state["v"].items()}
        new = {}
        for name, x in params.items():
            scale = v[name] / (1 - h["beta2"] ** step) + h["eps"]
            moved = m[name] / (1 - h["beta1"] ** step) / torch.where(scale > 0, scale, torch.ones_like(scale))
            keep = 1 - h["lr"] * h["weight_decay"]
            new[name] = keep * x - h["lr"] * torch.where(scale > 0, moved, torch.zeros_like(moved))
        return new, {"step": step, "m": m, "v": v}
