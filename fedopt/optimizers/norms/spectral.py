"""The largest singular value, and the polar factor of matrices."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.registry import declare

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients that are steepest at zero; singular values end between 0.68 and 1.14, not at 1."""


@declare(
    reference="Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, for the quintic iteration; "
    "Higham 2008, Functions of Matrices, section 8.3, for the cubic one"
)
@dataclass(frozen=True)
class spectral:
    """‖X‖ = σ_max(X), whose dual is Σ σ_i(Y); T = U Vᵀ for Y = U Σ Vᵀ.

    method: `quintic`: X ← a X + (b A + c A²) X with A = X Xᵀ, from X = Y / ‖Y‖_F, on the transpose where that is
        smaller; `cubic`: X ← (3/2) X - (1/2) A X, which converges to U Vᵀ; `svd`.
    steps: of an iteration. dtype: in which the iteration runs; None: that of the matrix.
    """

    method: Literal["quintic", "cubic", "svd"] = "quintic"
    steps: Annotated[int, pydantic.Field(ge=1)] = 5
    dtype: Literal["bfloat16", "float16", "float32", "float64"] | None = None

    def toward(self, ys: list[Tensor]) -> list[Tensor]:
        """Matrices of equal shapes, up to transposition, are worked on as one batch."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, y in enumerate(ys):
            rows, columns = y.shape
            alike[min(rows, columns), max(rows, columns)].append(i)
        found = list(ys)
        for members in alike.values():
            wide = [ys[i] if ys[i].shape[0] <= ys[i].shape[1] else ys[i].T for i in members]
            for i, polar in zip(members, self._polar(torch.stack(wide)), strict=True):
                found[i] = polar if ys[i].shape[0] <= ys[i].shape[1] else polar.T
        return found

    def _polar(self, y: Tensor) -> Tensor:
        """Of `[k, m, n]`, m <= n; 0 for 0."""
        if self.method == "svd":
            u, s, vt = torch.linalg.svd(y, full_matrices=False)
            kept = s > s.amax(dim=-1, keepdim=True) * torch.finfo(y.dtype).eps * max(y.shape[-2:])
            polar: Tensor = (u * kept[..., None, :].to(y.dtype)) @ vt
            return polar
        x = y if self.dtype is None else y.to(getattr(torch, self.dtype))
        size = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        x = x / torch.where(size > 0, size, torch.ones_like(size))
        a, b, c = QUINTIC
        for _ in range(self.steps):
            gram = x @ x.mT
            if self.method == "quintic":
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
            else:
                x = torch.baddbmm(x, gram, x, beta=1.5, alpha=-0.5)
        return x.to(y.dtype)

    def norm(self, x: Tensor) -> Tensor:
        largest: Tensor = torch.linalg.matrix_norm(x, 2)
        return largest

    def dual(self, y: Tensor) -> Tensor:
        total: Tensor = torch.linalg.matrix_norm(y, "nuc")
        return total
