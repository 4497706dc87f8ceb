"""LionMuon: spectral steps now and then, sign steps between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import Inner, _matrices, at_params
from fedopt.optimizers._matrices import ROWS, Scale
from fedopt.optimizers.adamw import adamw
from fedopt.optimizers.norms.spectral import spectral
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

OTHERS = adamw(lr=1e-3)


@declare(
    reference="Bolatov et al. 2026, LionMuon: Alternating Spectral and Sign Descent for Efficient Training, "
    "arXiv 2605.19811"
)
@dataclass(frozen=True)
class lion_muon:
    """One buffer, every `period`-th step a spectral one.

        u = β₁ m + (1 - β₁) g
        x ← (1 - η λ) x - η c NS(u)                 where t is a multiple of the period, from t = 0 on
        x ← (1 - η_L λ) x - η_L sign(u)             else
        m ← β₂ m + (1 - β₂) g

    lr: η. lr_sign: η_L, a share of η: η_L = lr_sign · η. period: 1 is Muon (with two means), a large one Lion.
    beta1, beta2: in [0, 1). weight_decay: λ. scale: c, 0.2 √max(m, n) by default. ns, ns_steps, ns_dtype: see
    `fedopt.optimizers.norms.spectral`. vectors, rows, apart: other parameters and their optimizer, see
    `preconditioned`.

    *Differences from the paper*: η_L is given as a share of η, so that one schedule moves both; which kind of step is
    due is a number of the state, so both are computed, and a run of a single model gains no time by a long period.
    """

    lr: Scalar = 1e-3
    lr_sign: Scalar = 0.05
    period: Annotated[int, pydantic.Field(ge=1)] = 2
    beta1: Scalar = 0.9
    beta2: Scalar = 0.99
    weight_decay: Scalar = 0.1
    scale: Scale = "rms"
    ns: Literal["quintic", "cubic", "svd"] = "quintic"
    ns_steps: Annotated[int, pydantic.Field(ge=1)] = 5
    ns_dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = None
    vectors: Inner = OTHERS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def init(self, params: Named) -> State:
        """`m` and `step` of each matrix; see `fedopt.optimizers._matrices`."""

        def first(x: Tensor) -> Any:
            return {"m": torch.zeros_like(x), "step": torch.zeros((), dtype=x.dtype, device=x.device)}

        return _matrices.init(self, params, first)

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, lr_sign, beta1, beta2, weight_decay and those of `vectors`."""
        h = at_params(hyper, params)

        def rule(
            grads: dict[str, Tensor], states: dict[str, Any], own: dict[str, Tensor]
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            ahead = {name: h["beta1"] * states[name]["m"] + (1 - h["beta1"]) * g for name, g in grads.items()}
            norm = spectral(self.ns, self.ns_steps, self.ns_dtype)
            new, after = {}, {}
            for (name, u), t in zip(ahead.items(), norm.toward(list(ahead.values())), strict=True):
                x, step = own[name], states[name]["step"]
                due = (step % self.period) == 0
                lr = torch.where(due, h["lr"], h["lr"] * h["lr_sign"])
                direction = torch.where(due, _matrices.scaled(self.scale, x) * t, u.sign())
                new[name] = (1 - lr * h["weight_decay"]) * x - lr * direction
                m = h["beta2"] * states[name]["m"] + (1 - h["beta2"]) * grads[name]
                after[name] = {"m": m, "step": step + 1}
            return new, after

        return _matrices.update(self, grads, state, params, hyper, rule)
