"""1-bit SGD: one bit for the side of 0, and the mean of each side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression._fields import Bits, Field, Floats
from fedopt.compression._rounding import mean
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Seide, Fu, Droppo, Li, Yu 2014, '1-Bit Stochastic Gradient Descent and its Application to Data-Parallel"
    " Distributed Training of Speech DNNs', section 3.2",
    kind="contraction",
    error=lambda numel: 1.0 - 1.0 / numel,
)
@dataclass(frozen=True)
class onebit:
    """Negative entries become their mean, the others theirs: the best two values for the two sides.

        C(x)ᵢ = mean of xⱼ < 0 where xᵢ < 0,    mean of xⱼ >= 0 elsewhere

    Differences from the paper: it takes the two means column by column of each layer, and keeps the error, which is
    `feedback` here.
    """

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        x = x.to(torch.float32)
        negative = x < 0
        below = mean(torch.where(negative, x, 0.0), negative.sum(dim=-1).clamp(min=1))
        above = mean(torch.where(negative, 0.0, x), (~negative).sum(dim=-1).clamp(min=1))
        return {"means": torch.stack([above, below], dim=-1), "negative": negative}

    def restore(self, code: Named, numel: int) -> Tensor:
        return torch.where(code["negative"] > 0, code["means"][1], code["means"][0])

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"means": (Floats(), 2), "negative": (Bits(1), numel)}
