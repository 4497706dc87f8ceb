"""SPlus: signs in the eigenbases of Shampoo's factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic

from fedopt.optimizers import Inner
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale, combined
from fedopt.optimizers.norms.max_entry import max_entry
from fedopt.optimizers.preconditioned import preconditioned
from fedopt.optimizers.preconditioners.eigenbasis import eigenbasis
from fedopt.registry import declare
from fedopt.schedules import Scalar

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Frans, Levine, Abbeel 2025, A Stable Whitening Optimizer for Efficient Neural Network Training, "
    "arXiv 2506.07254, algorithm 1"
)
@combined
@dataclass(frozen=True)
class splus:
    """SPlus: signs in the eigenbases of Shampoo's factors.

        A ← β A + (1 - β) G Gᵀ,  B ← β B + (1 - β) Gᵀ G,  Q_A, Q_B their eigenvectors
        x ← (1 - η λ) x - η c Q_A sign(Q_Aᵀ m Q_B) Q_Bᵀ

    lr: η. beta1: of m, see `preconditioned`. beta: β. every: bases are renewed every so many steps. scale: c.
    weight_decay: λ.
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from the paper*: steps are not scaled by the sum of a matrix's sides unless `scale` says so, and there
    is no average of the iterates.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta: Share = 0.999
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
            norm=max_entry(),
            preconditioner=eigenbasis(scaled=False, beta=self.beta, every=self.every),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
