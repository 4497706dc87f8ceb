"""MADGRAD."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Defazio, Jelassi 2021, Adaptivity without Compromise, arXiv 2101.11075, algorithm 1")
@dataclass(frozen=True)
class madgrad:
    """Dual averaging with cube roots of the summed squared gradients.

        s ← s + η √(t + 1) g;  v ← v + η √(t + 1) g²           s₀ = v₀ = 0
        z = x₀ - s / (v^(1/3) + ε);  x ← μ x + (1 - μ) z

    lr: η >= 0. momentum: μ in [0, 1). eps: ε >= 0. weight_decay: λ >= 0, an L2 penalty.

    *Differences from the paper*: η may change over the steps, as in its code.
    """

    lr: Scalar = 1e-2
    momentum: Scalar = 0.9
    eps: Scalar = 1e-6
    weight_decay: Scalar = 0.0

    def init(self, params: Named) -> State:
        """`step`, `s`, `v`, and `x0`, the first point."""
        zeros = {part: {name: torch.zeros_like(x) for name, x in params.items()} for part in ("s", "v")}
        return {"step": first_step(params), **zeros, "x0": {name: x.clone() for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, momentum, eps and weight_decay."""
        h = at_params(hyper, params)
        if self.weight_decay != 0:
            grads = {name: grads[name] + h["weight_decay"] * x for name, x in params.items()}
        step = state["step"] + 1
        weight = h["lr"] * step.sqrt()
        s = {name: s + weight * grads[name] for name, s in state["s"].items()}
        v = {name: v + weight * grads[name] ** 2 for name, v in state["v"].items()}
        new = {}
        for name, x in params.items():
            root = v[name] ** (1.0 / 3.0) + h["eps"]
            z = state["x0"][name] - s[name] / torch.where(root > 0, root, torch.ones_like(root))
            new[name] = h["momentum"] * x + (1 - h["momentum"]) * z
        return new, {"step": step, "s": s, "v": v, "x0": state["x0"]}
