"""Sign descent, with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Bernstein et al. 2018, signSGD: Compressed Optimisation for Non-Convex Problems, arXiv 1802.04434, "
    "algorithms 1 and 2"
)
@dataclass(frozen=True)
class signum:
    """Signs of the gradient's running mean.

        m ← β m + (1 - β) g;  x ← (1 - η λ) x - η sign(m)                                 m₀ = 0

    lr: η >= 0. momentum: β in [0, 1); 0 is signSGD, with no buffer. weight_decay: λ >= 0.

    *Differences from the paper*: the decay is decoupled.
    """

    lr: Scalar = 1e-4
    momentum: Scalar = 0.9
    weight_decay: Scalar = 0.0

    def init(self, params: Named) -> State:
        """`m`, where there is a momentum."""
        return {} if self.momentum == 0 else {"m": {name: torch.zeros_like(x) for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, momentum and weight_decay."""
        h, m = at_params(hyper, params), grads
        if self.momentum != 0:
            beta = h["momentum"]
            m = {name: beta * before + (1 - beta) * grads[name] for name, before in state["m"].items()}
            state = {"m": m}
        keep = 1 - h["lr"] * h["weight_decay"]
        return {name: keep * x - h["lr"] * m[name].sign() for name, x in params.items()}, state
