"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Sutskever et al. 2013, On the importance of initialization and momentum in deep learning")
@dataclass(frozen=True)
class sgd:
    """Stochastic gradient descent: heavy-ball or Nesterov momentum, L2 penalty.

        g ← g + λ x
        u ← g                        in the first step
        u ← μ u + (1 - damp) g       later
        x ← x - η u                  heavy ball
        x ← x - η (g + μ u)          Nesterov

    lr: η >= 0. momentum: 0 <= μ < 1. dampening: 0 <= damp < 1. weight_decay: λ >= 0.
    nesterov: needs a momentum, and no dampening.

    Raises ValueError for `nesterov` without momentum or with dampening.

    *Differences from the paper*: the step size multiplies the whole velocity, as in torch, so that a change of η acts
    at once.
    """

    lr: Scalar
    momentum: Scalar = 0.0
    dampening: Scalar = 0.0
    nesterov: bool = False
    weight_decay: Scalar = 0.0

    def __post_init__(self) -> None:
        """Refuse `nesterov` where it has no meaning."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs momentum > 0 and dampening = 0; momentum = {self.momentum} and"
                f" dampening = {self.dampening} were given"
            )

    def init(self, params: Named) -> State:
        """`momentum` (named tensors) and `step`; nothing where there is no momentum."""
        if self.momentum == 0:
            return {}
        return {"step": first_step(params), "momentum": {name: torch.zeros_like(x) for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, momentum, dampening and weight_decay."""
        h = at_params(hyper, params)
        if self.weight_decay != 0:
            grads = {name: torch.addcmul(grads[name], x, h["weight_decay"]) for name, x in params.items()}
        steps = grads
        if self.momentum != 0:
            mu = h["momentum"]
            share = torch.where(state["step"] == 0, torch.ones_like(mu), 1 - h["dampening"])
            velocity = {name: mu * u + share * grads[name] for name, u in state["momentum"].items()}
            steps = {name: grads[name] + mu * u for name, u in velocity.items()} if self.nesterov else velocity
            state = {**state, "step": state["step"] + 1, "momentum": velocity}
        # one fused pass over memory, which is the whole cost of this step
        return {name: torch.addcmul(x, steps[name], h["lr"], value=-1) for name, x in params.items()}, state
