"""Shampoo whose two factors each take the other one into account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from fedopt.optimizers import Inner
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale, combined
from fedopt.optimizers.norms.frobenius import frobenius
from fedopt.optimizers.preconditioned import preconditioned
from fedopt.optimizers.preconditioners.kronecker import kronecker
from fedopt.registry import declare
from fedopt.schedules import Scalar

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Positive = Annotated[float, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Lin et al. 2025, Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, "
    "arXiv 2509.03378"
)
@combined
@dataclass(frozen=True)
class kl_shampoo:
    """Shampoo whose two factors each take the other one into account.

        A ← β A + (1 - β) G B⁻¹ Gᵀ,  B ← β B + (1 - β) Gᵀ A⁻¹ G
        x ← (1 - η λ) x - η c (Â + ε Λ I)^(-p) m̂ (B̂ + ε Λ I)^(-p)

    lr: η. beta1: of m, see `preconditioned`. beta: β. power: p; 1/4 is the one of Veprikov et al. 2025. eps: ε,
    times the largest eigenvalue Λ. every: roots are renewed every so many steps. scale: c. weight_decay: λ.
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from the paper*: the factors are not divided by the numbers of rows and columns; full decompositions.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta: Share = 0.95
    power: Positive = 0.5
    eps: Positive = 1e-4
    every: Count = 10
    scale: Scale = "none"
    weight_decay: Scalar = 0.0
    vectors: Inner = VECTORS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def form(self) -> preconditioned:
        """The combination of a norm and a preconditioner that this is."""
        return preconditioned(
            lr=self.lr,
            norm=frobenius(normalise=False),
            preconditioner=kronecker("kl", self.power, beta=self.beta, eps=self.eps, every=self.every),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
