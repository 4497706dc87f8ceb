"""Functions of symmetric positive matrices, found in float64: small eigenvalues are what counts in them."""

from __future__ import annotations

import torch
from torch import Tensor

APART = 1e-4
NUDGE = 1e-13


def identity(x: Tensor, side: int) -> Tensor:
    """I of the size of a side of a matrix."""
    return torch.eye(x.shape[side], dtype=x.dtype, device=x.device)


def power(a: Tensor, exponent: float, eps: float) -> Tensor:
    """(A + ε λ_max(A) I)^exponent, negative eigenvalues, which are rounding, taken for 0; I for A = 0.

    A share `NUDGE` of the trace is added as in `basis`: LAPACK may not converge where an eigenvalue has thousands of
    eigenvectors.
    """
    values, vectors = torch.linalg.eigh(_apart(a, NUDGE))
    damped = values.clamp(min=0.0) + eps * values[..., -1:].clamp(min=0.0)
    damped = torch.where(damped > 0, damped, torch.ones_like(damped))
    found: Tensor = ((vectors * damped**exponent) @ vectors.mT).to(a.dtype)
    return found


def basis(a: Tensor) -> Tensor:
    """Eigenvectors as columns, by eigenvalues that grow.

    A share `APART` of the trace is added to the diagonal, growing along it, so that a matrix without full rank has one
    basis, too, and not whichever rounding chooses.
    """
    vectors: Tensor = torch.linalg.eigh(_apart(a, APART)).eigenvectors.to(a.dtype)
    return vectors


def _apart(a: Tensor, share: float) -> Tensor:
    """A in float64 with a share of its mean diagonal added, from nothing at the first entry to all at the last."""
    whole = a.double()
    ramp = torch.linspace(0.0, 1.0, a.shape[-1], dtype=torch.float64, device=a.device)
    mean = whole.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None]
    return whole + torch.diag_embed(share * mean * ramp)


def due(step: Tensor, every: int) -> Tensor:
    """Whether what is made of the statistics is renewed: each of the first `every` steps, then once in as many."""
    found: Tensor = (step < every) | (step % every == 0)
    return found


def product(x: Tensor, y: Tensor) -> Tensor:
    """X Y, rounded once."""
    found: Tensor = (x.double() @ y.double()).to(x.dtype)
    return found
