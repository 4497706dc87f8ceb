"""Yogi."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization, algorithm 2 (Yogi);"
    " Reddi et al. 2021, algorithm 2 (FedYogi)"
)
@dataclass(frozen=True)
class yogi:
    """Yogi: Adam whose second moment changes by an amount that depends on g² alone, so that it forgets slowly.

        g ← g + λ x
        m ← β₁ m + (1 - β₁) g                  m₀ = 0
        v ← v - (1 - β₂) sign(v - g²) g²       v₀ = initial_accumulator
        x ← x - η m / (√v + ε)                 m̂, v̂ in place of m, v with bias correction, as in `adam`

    lr: η >= 0. beta1, beta2: in [0, 1). eps: ε >= 0. weight_decay: λ >= 0, an L2 penalty. initial_accumulator: v₀, at
    best a squared gradient of typical size; the default is eps², as FedYogi starts it (τ² with `eps` = τ).

    *Differences from the paper*: `v₀` is one number for all coordinates, not the mean squared gradient over a large
    batch; bias correction and the L2 penalty are additions, both off by default.
    """

    lr: Scalar = 1e-2
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-3
    weight_decay: Scalar = 0.0
    bias_correction: bool = False
    initial_accumulator: float = 1e-6

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
        sq_grads = {name: grads[name] ** 2 for name in params}
        m = {name: h["beta1"] * m + (1 - h["beta1"]) * grads[name] for name, m in state["m"].items()}
        v = {
            name: v - (1 - h["beta2"]) * torch.sign(v - sq_grads[name]) * sq_grads[name]
            for name, v in state["v"].items()
        }
        lr, root = h["lr"], torch.ones_like(h["lr"])
        if self.bias_correction:
            lr, root = lr / (1 - h["beta1"] ** step), torch.sqrt(1 - h["beta2"] ** step)
        new = {name: x - lr * m[name] / (torch.sqrt(v[name]) / root + h["eps"]) for name, x in params.items()}
        return new, {"step": step, "m": m, "v": v}
