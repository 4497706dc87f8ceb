"""Natural compression: magnitudes rounded at random to powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression._fields import Bits, Field, Levels
from fedopt.registry import declare
from fedopt.types import Named

_LARGEST = 254
"""Exponent, as stored in a float32, of the largest finite powers of two."""


@declare(
    reference="Horvath, Ho, Horvath, Sahu, Canini, Richtarik 2019, 'Natural Compression for Distributed Deep Learning',"
    " definition 1, theorem 1",
    kind="unbiased",
    error=lambda numel: 0.125,
    zeros=True,
)
@dataclass(frozen=True)
class natural:
    """An entry becomes one of the two powers of two around it, the nearer one more often.

        C(t) = sign(t) 2^⌊log₂|t|⌋ (1 + b),    P(b = 1) = |t| / 2^⌊log₂|t|⌋ - 1
        E C(x) = x,    E ‖C(x) - x‖² <= ‖x‖² / 8

    On the wire, signs and how far each exponent is below the largest, as Rice codes: about 5 bits for normal numbers
    of one scale, where the exponent and sign of a float32 are 9.

    Differences from the paper: it sends 9 bits. Entries above 2¹²⁷ become 2¹²⁷.
    """

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key draws the b."""
        x = x.to(torch.float32)
        words = x.abs().view(torch.int32)
        up = keys.uniform(key, x.shape[-1]) < (words & 0x7FFFFF).to(torch.float32) * 2.0**-23
        # a denormal number has the exponent 0 and is rounded to 0 or to the smallest power there is
        exponents = ((words >> 23) + up).clamp(max=_LARGEST)
        top = exponents.amax(dim=-1)
        below = torch.where(exponents > 0, top - exponents + 1, 0)
        return {"top": top.to(torch.int64)[None], "below": torch.where(x < 0, -below, below).to(torch.int32)}

    def restore(self, code: Named, numel: int) -> Tensor:
        below = code["below"].to(torch.int32)
        exponents = (code["top"].to(torch.int32) + 1 - below.abs()).clamp(0, _LARGEST)
        magnitudes = (exponents << 23).view(torch.float32)
        return torch.where(below == 0, 0.0, torch.where(below < 0, -magnitudes, magnitudes))

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"top": (Bits(8), 1), "below": (Levels(_LARGEST + 1), numel)}
