"""Threshold: all entries of some magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.compression._fields import Field, Sparse, dense
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Strom 2015, 'Scalable Distributed DNN Training Using Commodity GPU Cloud Computing'; Dutta, Bergou,"
    " Abdelmoniem, Ho, Sahu, Canini, Kalnis 2020, 'On the Discrepancy between the Theoretical Analysis and Practical"
    " Implementations of Compressed Communication'",
    kind=lambda relative: "contraction" if relative else "biased",
    error=lambda numel, relative: 1.0 - 1.0 / numel if relative else float("inf"),
    zeros=True,
    examples=({"least": 0.3}, {"least": 0.5, "relative": False}),
)
@dataclass(frozen=True)
class threshold:
    """Entries of magnitude `least` and more, as they are; the others are taken for 0. The number of them varies.

        C(x)ᵢ = xᵢ where |xᵢ| >= λ, else 0,    λ = least · maxⱼ |xⱼ|    (or λ = least)

    least: λ, or its share of the largest magnitude.
    relative: whether it is such a share; then the largest entry is always kept, ‖x - C(x)‖² <= (1 - 1/d) ‖x‖².

    Differences from the paper: Strom sends the sign of what is above an absolute λ, and λ itself as its magnitude.
    """

    least: Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]
    relative: bool = True

    def __post_init__(self) -> None:
        if self.relative and self.least > 1.0:
            raise ValueError(f"least is a share of the largest magnitude, {self.least} is above 1; or relative = false")

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        x = x.to(torch.float32)
        magnitudes = x.abs()
        bound = magnitudes.amax(dim=-1, keepdim=True) * self.least if self.relative else self.least
        return {"kept": torch.where(magnitudes >= bound, x, 0.0)}

    def restore(self, code: Named, numel: int) -> Tensor:
        return dense(code["kept"])

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"kept": (Sparse(), numel)}
