"""TernGrad: three values, by the largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.compression._fields import Field, Floats, Levels
from fedopt.compression._rounding import rounded
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Wen, Xu, Yan, Wu, Wang, Chen, Li 2017, 'TernGrad: Ternary Gradients to Reduce Communication in"
    " Distributed Deep Learning', equations 4 and 10",
    kind=lambda clip: "unbiased" if clip is None else "biased",
    error=lambda numel, clip: (numel**0.5 - 1.0) if clip is None and numel > 1 else 0.0 if numel == 1 else float("inf"),
    zeros=True,
    examples=({}, {"clip": 2.5}),
)
@dataclass(frozen=True)
class terngrad:
    """Each entry is the largest magnitude with its sign, or 0.

        C(x)ᵢ = m sign(xᵢ) bᵢ,    m = maxⱼ |xⱼ|,    P(bᵢ = 1) = |xᵢ| / m;    E C(x) = x

    The variance is m ‖x‖₁ - ‖x‖₂², at most (√d - 1) ‖x‖₂² or so.

    clip: c; entries are first brought within c times their root mean square, which is biased and shrinks m. The paper
        has c = 2.5, and takes the standard deviation about their mean.

    Differences from the paper: the scale is that of the whole vector, not of a layer, and clients do not agree on a
    common one.
    """

    clip: Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)] | None = None

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key draws the bᵢ."""
        x = x.to(torch.float32)
        if self.clip is not None:
            largest = x.abs().amax(dim=-1)
            # the quotient first: squares may leave float32
            bound = self.clip * largest * (x / torch.where(largest > 0, largest, 1.0)).square().mean(dim=-1).sqrt()
            x = torch.maximum(torch.minimum(x, bound), -bound)
        most = x.abs().amax(dim=-1)
        drawn = rounded(x.abs() / torch.where(most > 0, most, 1.0), key).clamp(max=1.0)
        return {"most": most[None], "sign": (drawn * x.sign()).to(torch.int32)}

    def restore(self, code: Named, numel: int) -> Tensor:
        return code["sign"].to(torch.float32) * code["most"]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"most": (Floats(), 1), "sign": (Levels(1), numel)}
