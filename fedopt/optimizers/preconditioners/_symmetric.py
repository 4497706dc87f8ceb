"""Functions of symmetric positive matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def identity(x: Tensor, side: int) -> Tensor:
    """I of the size of a side of a matrix."""
    return torch.eye(x.shape[side], dtype=x.dtype, device=x.device)


def power(a: Tensor, exponent: float, eps: float) -> Tensor:
    """(A + ε I)^exponent, negative eigenvalues, which are rounding, taken for 0."""
    values, vectors = torch.linalg.eigh(a)
    found: Tensor = (vectors * (values.clamp(min=0.0) + eps) ** exponent) @ vectors.mT
    return found


def basis(a: Tensor) -> Tensor:
    """Eigenvectors as columns, by eigenvalues that grow."""
    vectors: Tensor = torch.linalg.eigh(a).eigenvectors
    return vectors
