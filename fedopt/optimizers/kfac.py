"""Kronecker factors: running means of the gradients' sides, or of what the gradients of layers are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
    reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, table 1 (K-FAC); Martens, Grosse "
    "2015, arXiv 1503.05671, for the factors of activations"
)
@combined
@dataclass(frozen=True)
class kfac:
    """Kronecker factors from the gradients, running means in place of Shampoo's sums, or those of layers.

        A ← β A + (1 - β) G Gᵀ,    B ← β B + (1 - β) Gᵀ G         statistics = "gradients"
        A ← β A + (1 - β) k Sᵀ S,  B ← β B + (1 - β) Xᵀ X / k     "layers"
        x ← (1 - η λ) x - η c (Â + ε Λ I)^(-p) m̂ (B̂ + ε Λ I)^(-p)

    X `[k, n]` are the inputs of a linear layer and S `[k, m]` the gradients at its outputs, G = Sᵀ X; other matrices
    (kernels) have the statistics of gradients.

    lr: η. beta1: of m, see `preconditioned`. beta: β. power: p, 1/4, or 1 for layers, where it is not given. eps:
    ε, times the largest eigenvalue Λ. every: roots are renewed every so many steps. scale: c. weight_decay: λ.
    vectors, rows, apart: other parameters and their optimizer, see `preconditioned`.

    *Differences from Martens and Grosse*: with layers, S is of the loss of the labels that are given (the empirical
    Fisher matrix), damping is by ε Λ on each factor, biases have the optimizer of vectors, and no step size is found.
    """

    lr: Scalar = 1e-2
    statistics: Literal["gradients", "layers"] = "gradients"
    beta1: Scalar = 0.9
    beta: Share = 0.99
    power: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    eps: Positive = 1e-6
    every: Count = 10
    scale: Scale = "none"
    weight_decay: Scalar = 0.0
    vectors: Inner = VECTORS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def form(self) -> preconditioned:
        """The combination of a norm and a preconditioner that this is."""
        of_layers = self.statistics == "layers"
        power = self.power or (1.0 if of_layers else 0.25)
        kind: Literal["factors", "ema"] = "factors" if of_layers else "ema"
        return preconditioned(
            lr=self.lr,
            norm=frobenius(normalise=False),
            preconditioner=kronecker(kind, power, beta=self.beta, eps=self.eps, every=self.every),
            nesterov=False,
            bias_correction=True,
            scale=self.scale,
            weight_decay=self.weight_decay,
            vectors=self.vectors,
            rows=self.rows,
            apart=self.apart,
        )
