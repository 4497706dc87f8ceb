"""Adagrad."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Duchi, Hazan, Singer 2011, Adaptive Subgradient Methods, figure 1 (diagonal);"
    " Reddi et al. 2021, algorithm 2 (FedAdagrad)"
)
@dataclass(frozen=True)
class adagrad:
    """Adagrad: steps scaled by the root of the sum of all squared gradients.

        g ← g + λ x
        m ← β₁ m + (1 - β₁) g       m₀ = 0
        v ← v + g²                  v₀ = initial_accumulator
        x ← x - η m / (√v + ε)

    lr: η >= 0. eps: ε >= 0. weight_decay: λ >= 0, an L2 penalty. initial_accumulator: v₀ >= 0; τ² for FedAdagrad, with
    `eps` = τ. beta1: in [0, 1); 0 is plain Adagrad (m = g, and nothing is kept for it).

    *Differences from the paper*: the L2 penalty is an addition, and beta1 is the one of FedAdagrad.
    """

    lr: Scalar = 1e-2
    eps: Scalar = 1e-10
    weight_decay: Scalar = 0.0
    initial_accumulator: float = 0.0
    beta1: Scalar = 0.0

    def init(self, params: Named) -> State:
        """`v`, and `m` where `beta1` is not 0."""
        state = {"v": {name: torch.full_like(x, self.initial_accumulator) for name, x in params.items()}}
        if self.beta1 != 0:
            state["m"] = {name: torch.zeros_like(x) for name, x in params.items()}
        return state

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, eps, weight_decay and beta1."""
        h = at_params(hyper, params)
        if self.weight_decay != 0:
            grads = {name: grads[name] + h["weight_decay"] * x for name, x in params.items()}
        v = {name: v + grads[name] ** 2 for name, v in state["v"].items()}
        m = grads
        if self.beta1 != 0:
            m = {name: h["beta1"] * m + (1 - h["beta1"]) * grads[name] for name, m in state["m"].items()}
            state = {**state, "m": m}
        new = {name: x - h["lr"] * m[name] / (torch.sqrt(v[name]) + h["eps"]) for name, x in params.items()}
        return new, {**state, "v": v}
