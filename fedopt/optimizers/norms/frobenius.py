"""The Frobenius norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.registry import declare


@declare(reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, table 1")
@dataclass(frozen=True)
class frobenius:
    """‖X‖_F, which is its own dual; T = Y / ‖Y‖_F, and 0 for Y = 0.

    normalise: False leaves Y as it is (the sharp operator up to its scale), which is how gradient descent, Adam and
        Shampoo are had from this norm.
    """

    normalise: bool = True

    def toward(self, ys: list[Tensor]) -> list[Tensor]:
        if not self.normalise:
            return ys
        return [y / torch.where((size := self.norm(y)) > 0, size, torch.ones_like(size)) for y in ys]

    def norm(self, x: Tensor) -> Tensor:
        return x.square().sum().sqrt()

    def dual(self, y: Tensor) -> Tensor:
        return self.norm(y)
