"""Matrices with orthogonal rows or columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.optimizers.directions.gaussian import like
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Petrov et al. 2025, Leveraging Coordinate Momentum in SignSGD and Muon, arXiv 2506.04430, algorithm 4 "
    "(matrix-efficient ZO-Muon)"
)
@dataclass(frozen=True)
class orthogonal:
    """E = U Vᵀ, drawn uniformly for each matrix `[m, n]`, seen as `[first, all others]`; signs for other tensors.

    A step along sign(Δf) E is what Muon makes of the gradient's estimate, without an iteration: set `sign = true`.

    *Difference from the paper*: singular values of E are 1; it allows any.
    """

    def draw(self, key: Tensor, params: Named) -> Named:
        return {name: _polar(z) if z.dim() > 1 else z.sign() for name, z in like(key, params).items()}


def _polar(z: Tensor) -> Tensor:
    """The orthogonal factor of a normal matrix, which is uniform."""
    flat = z.reshape(z.shape[0], -1)
    tall = flat if flat.shape[0] >= flat.shape[1] else flat.T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()  # otherwise not uniform
    e: Tensor = q if flat.shape[0] >= flat.shape[1] else q.T
    return e.reshape(z.shape)
