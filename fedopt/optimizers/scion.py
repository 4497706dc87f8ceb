"""Scion: steps of constant norm, chosen by what a parameter is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import Inner, _matrices, at_params
from fedopt.optimizers._matrices import ROWS
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.signum import signum
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

SIGNS = signum(lr=1e-3)


@declare(
    reference="Pethick et al. 2025, Training Deep Learning Models with Norm-Constrained LMOs, arXiv 2502.07529, "
    "algorithms 1 (constrained) and 2"
)
@dataclass(frozen=True)
class scion:
    """Spectral steps for matrices, sign steps for all else.

        m ← (1 - α) m + α g;  x ← x - η ρ √(m/n) NS(m)                    unconstrained
                              x ← (1 - η) x - η ρ √(m/n) NS(m)            constrained: x stays in the ball of radius ρ

    lr: η. alpha: α. radius: ρ. constrained: as above. ns, ns_steps, ns_dtype: see `fedopt.optimizers.norms.spectral`.
    vectors: the optimizer of other parameters, signs by default; rows, apart: which those are, see `preconditioned`.

    *Differences from the paper*: the norm of an input layer and of an embedding is that of the others of their shape.
    """

    lr: Scalar = 1e-3
    alpha: Scalar = 0.1
    radius: Annotated[float, pydantic.Field(gt=0)] = 1.0
    constrained: bool = False
    ns: Literal["quintic", "cubic", "svd"] = "quintic"
    ns_steps: Annotated[int, pydantic.Field(ge=1)] = 5
    ns_dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = None
    vectors: Inner = SIGNS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def init(self, params: Named) -> State:
        """`m` of each matrix; see `fedopt.optimizers._matrices`."""
        return _matrices.init(self, params, torch.zeros_like)

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, alpha and those of `vectors`."""
        h = at_params(hyper, params)

        def rule(
            grads: dict[str, Tensor], states: dict[str, Any], own: dict[str, Tensor]
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            means = {name: (1 - h["alpha"]) * states[name] + h["alpha"] * g for name, g in grads.items()}
            keep, new = 1 - h["lr"] if self.constrained else torch.ones_like(h["lr"]), {}
            norm = spectral(self.ns, self.ns_steps, self.ns_dtype)
            for name, t in zip(means, norm.toward(list(means.values())), strict=True):
                m, n = t.shape
                new[name] = keep * own[name] - h["lr"] * self.radius * (m / n) ** 0.5 * t
            return new, means

        return _matrices.update(self, grads, state, params, hyper, rule)
