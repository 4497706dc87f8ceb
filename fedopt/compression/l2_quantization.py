"""Quantisation by the Euclidean norm: an entry is the norm with its sign, or 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression._fields import Field, Floats, Levels
from fedopt.compression._rounding import cut, norms, rounded
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Mishchenko, Gorbunov, Takac, Richtarik 2019, 'Distributed Learning with Compressed Gradient"
    " Differences', definition 1 with p = 2 and one block",
    kind="unbiased",
    error=lambda numel: numel**0.5 - 1.0 if numel > 1 else 0.0,
    zeros=True,
)
@dataclass(frozen=True)
class l2_quantization:
    """Bernoulli signs at the scale of the whole vector.

        C(x)ᵢ = ‖x‖₂ sign(xᵢ) ξᵢ,    P(ξᵢ = 1) = |xᵢ| / ‖x‖₂;    E ‖C(x) - x‖² = ‖x‖₁ ‖x‖₂ - ‖x‖₂² <= (√d - 1) ‖x‖₂²

    On average ‖x‖₁ / ‖x‖₂ <= √d entries are not 0, so a message has about √d log d bits.

    Differences from the paper: one block; `qsgd` with levels = 1 has buckets.
    """

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key draws the ξᵢ."""
        x = x.to(torch.float32)
        scale = norms(cut(x, None), "l2")
        drawn = rounded(x.abs() / torch.where(scale > 0, scale, 1.0), key).clamp(max=1.0)
        return {"norm": scale, "sign": (drawn * x.sign()).to(torch.int32)}

    def restore(self, code: Named, numel: int) -> Tensor:
        return code["sign"].to(torch.float32) * code["norm"]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"norm": (Floats(), 1), "sign": (Levels(1), numel)}
