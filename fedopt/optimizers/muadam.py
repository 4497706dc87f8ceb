"""MuAdam: orthogonalised Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from fedopt.optimizers import Inner
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale, combined
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.preconditioned import preconditioned
from fedopt.optimizers.preconditioners.entrywise import entrywise
from fedopt.registry import declare
from fedopt.schedules import Scalar

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, algorithm 1")
@combined
@dataclass(frozen=True)
class muadam:
    """MuAdam: orthogonalised Adam.

        m ← β₁ m + (1 - β₁) g;  V ← β₂ V + (1 - β₂) g²;  D² = (√V + ε) / √(1 - β₂ᵗ)
        x ← (1 - η λ) x - η c NS(m̂ / D) / D                              entries with D = 0 do not move

    lr: η; steps are 1 to 2 orders longer than Muon's at an equal η. beta1, beta2: β₁, β₂. eps: ε. weight_decay: λ.
    scale: c, `rows` √max(1, m/n). ns, ns_steps, ns_dtype: see `fedopt.optimizers.norms.spectral`.
    frozen_step: t = 1 in D for good, as the authors' release has it by mistake; steps are then shorter, by the factor
        ((1 - β₂) / (1 - β₂ᵗ))^(1/4).
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from the release*: t is counted; V is a mean and nothing else; no updates in bfloat16 unless asked.
    """

    lr: Scalar = 1e-4
    beta1: Scalar = 0.9
    beta2: Share = 0.999
    eps: Annotated[float, pydantic.Field(ge=0)] = 1e-8
    weight_decay: Scalar = 0.0
    scale: Scale = "rows"
    ns: Literal["quintic", "cubic", "svd"] = "quintic"
    ns_steps: Count = 10
    ns_dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = None
    frozen_step: bool = False
    vectors: Inner = VECTORS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def form(self) -> preconditioned:
        """The combination of a norm and a preconditioner that this is."""
        return preconditioned(
            lr=self.lr,
            norm=spectral(self.ns, self.ns_steps, self.ns_dtype),
            preconditioner=entrywise(0.25, "ema", self.beta2, self.eps, "before", self.frozen_step),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
