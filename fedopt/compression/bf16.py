"""bfloat16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression._fields import Field, Sparse, dense
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    kind="contraction",
    error=lambda numel: 2.0**-16,
    zeros=True,
)
@dataclass(frozen=True)
class bf16:
    """The upper half of a float32, rounded to even: 8 significant bits, 2 d bytes and one.

    |decode(encode(x))ᵢ - xᵢ| <= 2⁻⁸ |xᵢ|    for normal numbers
    """

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        most = torch.finfo(torch.bfloat16).max
        return {"entries": x.clamp(-most, most).to(torch.bfloat16)}

    def restore(self, code: Named, numel: int) -> Tensor:
        return dense(code["entries"])

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"entries": (Sparse(torch.bfloat16), numel)}
