"""Half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression._fields import Field, Sparse, dense
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    kind="contraction",
    error=lambda numel: 2.0**-20,
    zeros=True,
)
@dataclass(frozen=True)
class fp16:
    """IEEE 754 half precision: 11 significant bits, 2 d bytes and one.

        |decode(encode(x))ᵢ - xᵢ| <= 2⁻¹¹ |xᵢ|    for 2⁻¹⁴ <= |xᵢ| <= 65504

    Larger entries become ±65504, smaller ones lose digits down to 2⁻²⁴.
    """

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        most = torch.finfo(torch.float16).max
        return {"entries": x.clamp(-most, most).to(torch.float16)}

    def restore(self, code: Named, numel: int) -> Tensor:
        return dense(code["entries"])

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"entries": (Sparse(torch.float16), numel)}
