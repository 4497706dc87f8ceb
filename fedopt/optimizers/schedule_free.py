"""Schedule-free AdamW and gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Defazio et al. 2024, The Road Less Scheduled, arXiv 2405.15682, algorithm 1 and equations 3-5")
@dataclass(frozen=True)
class schedule_free:
    """An average x of a sequence z, gradients taken between the two; the parameters are x.

        y = (1 - β₁) z + β₁ x                                  where the gradient is asked for
        z ← z - η_t u - η_t λ y;  x ← (1 - c) x + c z,  c = η_t² / Σ η_i²
        u = g, or g / (√v̂ + ε) with v ← β₂ v + (1 - β₂) g² and v̂ = v / (1 - β₂ᵗ)

    η_t = η min(1, t / warmup). base: `adamw` or `sgd`. lr: η >= 0. beta1, beta2: in [0, 1). eps: ε. weight_decay: λ.
    warmup: steps.

    *Differences from the paper*: parameters are x, what is used afterwards; its code holds y and swaps.
    """

    lr: Scalar = 2.5e-3
    base: Literal["adamw", "sgd"] = "adamw"
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    warmup: int = 0

    def init(self, params: Named) -> State:
        """`step`, `weight` = Σ η_i², `z`, and `v` for adamw."""
        state = {
            "step": first_step(params),
            "weight": first_step(params),
            "z": {n: x.clone() for n, x in params.items()},
        }
        return state | ({"v": {n: torch.zeros_like(x) for n, x in params.items()}} if self.base == "adamw" else {})

    def ahead(self, state: State, params: Named, hyper: Named) -> Named:
        """y."""
        beta = at_params(hyper, params)["beta1"]
        return {name: (1 - beta) * state["z"][name] + beta * x for name, x in params.items()}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step with gradients at y; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h, y, step = at_params(hyper, params), self.ahead(state, params, hyper), state["step"] + 1
        u, moments = grads, {}
        if self.base == "adamw":
            v = {name: h["beta2"] * v + (1 - h["beta2"]) * grads[name] ** 2 for name, v in state["v"].items()}
            root = (1 - h["beta2"] ** step).sqrt()
            u = {name: g / (v[name].sqrt() / root + h["eps"]) for name, g in grads.items()}
            moments = {"v": v}
        lr = h["lr"] * (torch.clamp(step / self.warmup, max=1.0) if self.warmup else 1.0)
        weight = state["weight"] + lr**2
        share = torch.where(weight > 0, lr**2 / torch.where(weight > 0, weight, torch.ones_like(weight)), weight)
        z = {name: z - lr * u[name] - lr * h["weight_decay"] * y[name] for name, z in state["z"].items()}
        new = {name: (1 - share) * x + share * z[name] for name, x in params.items()}
        return new, {"step": step, "weight": weight, "z": z, **moments}
