"""Block quantisation: integers of 8 or 4 bits, and a scale for each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedopt.compression._counts import Count
from fedopt.compression._fields import Bits, Field, Floats
from fedopt.compression._rounding import buckets, cut, rounded
from fedopt.registry import declare
from fedopt.types import Named


def _error(numel: int, bits: int, block: int, rounding: str) -> float:
    # off by half a step at the most, or, where it is drawn, with a variance of a quarter of a step's square
    bound: float = buckets(numel, block)[1] / (4.0 * (2 ** (bits - 1) - 1) ** 2)
    return bound if rounding == "stochastic" else min(bound, 1.0)


@declare(
    reference="Dettmers, Lewis, Shleifer, Zettlemoyer 2021, '8-bit Optimizers via Block-wise Quantization', section"
    " 2.1",
    kind=lambda rounding: "contraction" if rounding == "nearest" else "unbiased",
    error=_error,
    zeros=True,
    examples=({}, {"bits": 4}, {"bits": 4, "block": 5, "rounding": "stochastic"}),
)
@dataclass(frozen=True)
class blocks:
    """Entries as whole numbers of steps, 127 (or 7) of which make the largest magnitude of their block.

        C(x)ᵢ = q s,    s = maxⱼ |xⱼ| / (2^(bits-1) - 1),    q = xᵢ / s, rounded

    On the wire, a float32 for each block and `bits` bits for each entry.

    bits: 8 or 4. block: entries that share a scale.
    rounding: "nearest", a contraction, or "stochastic", unbiased.

    Differences from the paper: it has blocks of 2048 and levels that are not evenly spaced.
    """

    bits: Literal[4, 8] = 8
    block: Count = 64
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key draws the rounding where it is stochastic."""
        x = x.to(torch.float32)
        rows, most = cut(x, self.block), 2 ** (self.bits - 1) - 1
        largest = rows.abs().amax(dim=1)
        # the quotient first: a step may be too small for float32 where the largest entry is not
        steps = (rows / torch.where(largest > 0, largest, 1.0)[:, None] * most).flatten()[: x.shape[-1]]
        whole = steps.round() if self.rounding == "nearest" else rounded(steps.abs(), key) * steps.sign()
        return {"largest": largest, "step": (whole.clamp(-most, most) + most).to(torch.int64)}

    def restore(self, code: Named, numel: int) -> Tensor:
        most = 2 ** (self.bits - 1) - 1
        rows = cut((code["step"] - most).clamp(-most, most).to(torch.float32) / most, self.block)
        return (rows * code["largest"][:, None]).flatten()[:numel]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"largest": (Floats(), buckets(numel, self.block)[0]), "step": (Bits(self.bits), numel)}
