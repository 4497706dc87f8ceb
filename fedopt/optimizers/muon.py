"""Muon: orthogonalised momentum for matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from fedopt.optimizers import Inner
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale, combined
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.preconditioned import preconditioned
from fedopt.optimizers.preconditioners.none import none
from fedopt.registry import declare
from fedopt.schedules import Scalar

Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; Liu et al. 2025, Muon"
    " is Scalable for LLM Training, arXiv 2502.16982, for scale rms (D-Muon)"
)
@combined
@dataclass(frozen=True)
class muon:
    """Muon: orthogonalised momentum for matrices.

        m ← μ m + (1 - μ) g;  u = m, or (1 - μ) g + μ m with nesterov;  x ← (1 - η λ) x - η c NS(u)

    lr: η. momentum: μ. weight_decay: λ. scale: c: `rows` √max(1, m/n); `rms` 0.2 √max(m, n), D-Muon.
    ns, ns_steps, ns_dtype: method, steps and dtype of the orthogonalisation, see `fedopt.optimizers.norms.spectral`.
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from its first code*: m is a mean, not a sum, which the orthogonalisation does not tell apart.
    """

    lr: Scalar = 1e-3
    momentum: Scalar = 0.95
    nesterov: bool = True
    weight_decay: Scalar = 0.0
    scale: Scale = "rows"
    ns: Literal["quintic", "cubic", "svd"] = "quintic"
    ns_steps: Count = 5
    ns_dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = None
    vectors: Inner = VECTORS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def form(self) -> preconditioned:
        """The combination of a norm and a preconditioner that this is."""
        return preconditioned(
            lr=self.lr,
            norm=spectral(self.ns, self.ns_steps, self.ns_dtype),
            preconditioner=none(),
            nesterov=self.nesterov,
            bias_correction=False,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
