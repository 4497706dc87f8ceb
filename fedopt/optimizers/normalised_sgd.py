"""Normalised gradient descent, with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Cutkosky, Mehta 2020, Momentum Improves Normalized SGD, arXiv 2002.03305, algorithm 1")
@dataclass(frozen=True)
class normalised_sgd:
    """Steps whose length is the learning rate.

        m ← β m + (1 - β) g;  u = m, or β m + (1 - β) g with nesterov;  x ← (1 - η λ) x - η u / ‖u‖         m₀ = 0

    lr: η >= 0. momentum: β in [0, 1); 0 keeps no buffer. nesterov: as above. weight_decay: λ >= 0.
    over: `tensor`: the norm of each tensor by itself; `all`: of all together, as in the paper. u = 0 does not move.

    *Differences from the paper*: the decay and nesterov are additions.
    """

    lr: Scalar = 1e-2
    momentum: Scalar = 0.9
    nesterov: bool = False
    weight_decay: Scalar = 0.0
    over: Literal["tensor", "all"] = "tensor"

    def init(self, params: Named) -> State:
        """`m`, where there is a momentum."""
        return {} if self.momentum == 0 else {"m": {name: torch.zeros_like(x) for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, momentum and weight_decay."""
        h, u = at_params(hyper, params), grads
        if self.momentum != 0:
            beta = h["momentum"]
            m = {name: beta * before + (1 - beta) * grads[name] for name, before in state["m"].items()}
            u = {name: beta * m[name] + (1 - beta) * g for name, g in grads.items()} if self.nesterov else m
            state = {"m": m}
        squares = {name: x.square().sum() for name, x in u.items()}
        if self.over == "all":
            squares = dict.fromkeys(u, torch.stack(list(squares.values())).sum())
        keep = 1 - h["lr"] * h["weight_decay"]
        return {name: keep * x - h["lr"] * _unit(u[name], squares[name].sqrt()) for name, x in params.items()}, state


def _unit(x: Tensor, size: Tensor) -> Tensor:
    return x / torch.where(size > 0, size, torch.ones_like(size))
