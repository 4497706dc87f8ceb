"""Adam."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Kingma and Ba 2015, Adam, algorithm 1; Reddi et al. 2021, algorithm 2 (FedAdam)")
@dataclass(frozen=True)
class adam:
    """Adam: steps scaled by running means of the gradient and of its square.

        g ← g + λ x
        m ← β₁ m + (1 - β₁) g            m₀ = 0
        v ← β₂ v + (1 - β₂) g²           v₀ = initial_accumulator
        x ← x - η m̂ / (√v̂ + ε)           m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ) with bias correction, else m, v

    lr: η >= 0. beta1, beta2: in [0, 1). eps: ε >= 0. weight_decay: λ >= 0, an L2 penalty; see `adamw` for the
    decoupled form. bias_correction: False for FedAdam, with `eps` = τ and `initial_accumulator` = τ².

    *Differences from the paper*: the L2 penalty and `initial_accumulator` are additions, both 0 by default.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    bias_correction: bool = True
    initial_accumulator: float = 0.0

    def init(self, params: Named) -> State:
        """`step`, `m` and `v`."""
        return {
            "step": first_step(params),
            "m": {name: torch.zeros_like(x) for name, x in params.items()},
            "v": {name: torch.full_like(x, self.initial_accumulator) for name, x in params.items()},
        }

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h = at_params(hyper, params)
        if self.weight_decay != 0:
            grads = {name: grads[name] + h["weight_decay"] * x for name, x in params.items()}
        step = state["step"] + 1
        m = {name: h["beta1"] * m + (1 - h["beta1"]) * grads[name] for name, m in state["m"].items()}
        v = {name: h["beta2"] * v + (1 - h["beta2"]) * grads[name] ** 2 for name, v in state["v"].items()}
        lr, root = h["lr"], torch.ones_like(h["lr"])
        if self.bias_correction:
            lr, root = lr / (1 - h["beta1"] ** step), torch.sqrt(1 - h["beta2"] ** step)
        new = {name: x - lr * m[name] / (torch.sqrt(v[name]) / root + h["eps"]) for name, x in params.items()}
        return new, {"step": step, "m": m, "v": v}
