"""RMSProp."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Tieleman, Hinton 2012, Lecture 6.5; Graves 2013, arXiv 1308.0850, equations 38-41, for centered")
@dataclass(frozen=True)
class rmsprop:
    """Steps scaled by a running mean of the squared gradient.

        g ← g + λ x
        v ← α v + (1 - α) g²;  w ← α w + (1 - α) g              w where it is centered, else 0
        u ← μ u + g / (√(v - w²) + ε);  x ← x - η u

    lr: η >= 0. alpha: α in [0, 1). eps: ε >= 0. momentum: μ in [0, 1). weight_decay: λ >= 0. centered: whether w is.

    *Differences from the lecture*: ε stands outside the root, as in torch.
    """

    lr: Scalar = 1e-2
    alpha: Scalar = 0.99
    eps: Scalar = 1e-8
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    centered: bool = False

    def init(self, params: Named) -> State:
        """`v`; `w` where it is centered; `momentum` where there is one."""
        kept = ["v", *(["w"] if self.centered else []), *(["momentum"] if self.momentum != 0 else [])]
        return {part: {name: torch.zeros_like(x) for name, x in params.items()} for part in kept}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, alpha, eps, momentum and weight_decay."""
        h = at_params(hyper, params)
        if self.weight_decay != 0:
            grads = {name: grads[name] + h["weight_decay"] * x for name, x in params.items()}
        alpha = h["alpha"]
        after = {"v": {name: alpha * v + (1 - alpha) * grads[name] ** 2 for name, v in state["v"].items()}}
        spread = after["v"]
        if self.centered:
            after["w"] = {name: alpha * w + (1 - alpha) * grads[name] for name, w in state["w"].items()}
            spread = {name: (v - after["w"][name] ** 2).clamp(min=0) for name, v in spread.items()}
        steps = {name: g / (spread[name].sqrt() + h["eps"]) for name, g in grads.items()}
        if self.momentum != 0:
            steps = {name: h["momentum"] * u + steps[name] for name, u in state["momentum"].items()}
            after["momentum"] = steps
        return {name: x - h["lr"] * steps[name] for name, x in params.items()}, after
