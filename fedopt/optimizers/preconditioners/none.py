"""No preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedopt.registry import declare
from fedopt.types import Named


@declare(reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, table 1, first group")
@dataclass(frozen=True)
class none:
    """P = I."""

    def init(self, x: Tensor) -> Named:
        return {}

    def update(self, state: Named, g: Tensor) -> Named:
        return state

    def at(self, state: Named) -> Named:
        return state

    def inward(self, at: Named, y: Tensor) -> Tensor:
        return y

    def outward(self, at: Named, t: Tensor) -> Tensor:
        return t
