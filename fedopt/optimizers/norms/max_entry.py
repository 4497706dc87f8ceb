"""The largest entry."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedopt.registry import declare


@declare(reference="Bernstein, Newhouse 2024, Old Optimizer, New Norm: An Anthology, arXiv 2409.20325, section 2")
@dataclass(frozen=True)
class max_entry:
    """‖X‖ = max |X_ij|, whose dual is Σ |Y_ij|; T = sign Y."""

    def toward(self, ys: list[Tensor]) -> list[Tensor]:
        return [y.sign() for y in ys]

    def norm(self, x: Tensor) -> Tensor:
        return x.abs().amax()

    def dual(self, y: Tensor) -> Tensor:
        return y.abs().sum()
