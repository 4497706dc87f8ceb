"""Shampoo with one side alone."""

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

Positive = Annotated[float, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Xie et al. 2025, Structured Preconditioners in Adaptive Optimization, arXiv 2503.10537, algorithm "
    "2 (one-sided Shampoo)"
)
@combined
@dataclass(frozen=True)
class one_sided_shampoo:
    """Shampoo with one side alone.

        A ← A + G Gᵀ;  x ← (1 - η λ) x - η c (A + ε Λ I)^(-1/2) m̂

    lr: η. beta1: of m, see `preconditioned`. eps: ε, times the largest eigenvalue Λ. every: the root is renewed
    every so many steps. scale: c. weight_decay: λ. vectors, rows, apart: other parameters and their optimizer, see
    `preconditioned`.

    *Differences from the paper*: momentum is an addition, 0 in the paper.
    """

    lr: Scalar = 1e-2
    beta1: Scalar = 0.9
    eps: Positive = 1e-6
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
            preconditioner=kronecker(statistics="sum", power=0.5, one_sided=True, eps=self.eps, every=self.every),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
