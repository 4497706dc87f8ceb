"""SOAP: Adam in the eigenbases of Shampoo's factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from fedopt.optimizers import Inner
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale, combined
from fedopt.optimizers.norms.frobenius import frobenius
from fedopt.optimizers.preconditioned import preconditioned
from fedopt.optimizers.preconditioners.eigenbasis import eigenbasis
from fedopt.registry import declare
from fedopt.schedules import Scalar

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Positive = Annotated[float, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam, arXiv 2409.11321, algorithm 3"
)
@combined
@dataclass(frozen=True)
class soap:
    """SOAP: Adam in the eigenbases of Shampoo's factors.

        A ← β A + (1 - β) G Gᵀ,  B ← β B + (1 - β) Gᵀ G,  Q_A, Q_B their eigenvectors
        V ← β₂ V + (1 - β₂) (Q_Aᵀ G Q_B)²
        x ← (1 - η λ) x - η c Q_A [(Q_Aᵀ m̂ Q_B) / (√V̂ + ε)] Q_Bᵀ

    lr: η. beta1: of m, see `preconditioned`. beta, beta2: β, β₂. eps: ε. every: bases are renewed every so many steps.
    scale: c. weight_decay: λ.
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from the paper*: full decompositions, the first of them in the first step, which moves.
    """

    lr: Scalar = 3e-3
    beta1: Scalar = 0.95
    beta: Share = 0.95
    beta2: Share = 0.95
    eps: Positive = 1e-8
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
            preconditioner=eigenbasis(True, self.beta, self.beta2, self.eps, self.every),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
