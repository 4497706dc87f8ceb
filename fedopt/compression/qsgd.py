"""QSGD: magnitudes rounded at random to a few levels of the norm of their bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.compression._counts import Count
from fedopt.compression._fields import Field, Floats, Levels
from fedopt.compression._rounding import buckets, cut, norms, rounded
from fedopt.registry import declare
from fedopt.types import Named


def _error(numel: int, levels: int, bucket: int | None, norm: str) -> float:
    size: int = buckets(numel, bucket)[1]
    if norm == "max":  # every entry is off by a level at the most, and varies by a quarter of its square
        return float(size / (4.0 * levels**2))
    return float(min(size / levels**2, size**0.5 / levels))


@declare(
    reference="Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, 'QSGD: Communication-Efficient SGD via Gradient"
    " Quantization and Encoding', section 3.1, lemma 3.1",
    kind="unbiased",
    error=_error,
    zeros=True,
    examples=({}, {"levels": 4, "bucket": None}, {"levels": 1, "bucket": 8, "norm": "max"}),
)
@dataclass(frozen=True)
class qsgd:
    """Each entry is a whole number of s-ths of its bucket's norm, drawn so that its mean is right.

        C(x)ᵢ = ‖x‖ sign(xᵢ) ξᵢ / s,    ξᵢ = ⌊s |xᵢ| / ‖x‖ + uᵢ⌋,    uᵢ uniform on [0, 1)
        E C(x) = x,    E ‖C(x) - x‖² <= min(n / s², √n / s) ‖x‖²    in buckets of n

    On the wire, the norms as float32 and the levels as Rice codes, within a few percent of their entropy.

    levels: s.
    bucket: n entries share a norm; None: all of them.
    norm: "l2", or the largest magnitude, "max", with a smaller error and more levels in use.

    Differences from the paper: it writes levels as Elias codes.
    """

    levels: Annotated[int, pydantic.Field(ge=1, le=1 << 20)] = 16
    bucket: Count | None = 512
    norm: Literal["l2", "max"] = "l2"

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key draws the uᵢ."""
        x = x.to(torch.float32)
        rows = cut(x, self.bucket)
        scale = norms(rows, self.norm)
        # the quotient first: products with a small or a large norm would leave float32
        share = rows.abs() / torch.where(scale > 0, scale, 1.0)[:, None]
        level = rounded(share.flatten() * self.levels, key).clamp(max=self.levels)[: x.shape[-1]]
        return {"norm": scale, "level": (level * x.sign()).to(torch.int32)}

    def restore(self, code: Named, numel: int) -> Tensor:
        rows = cut(code["level"].to(torch.float32) / self.levels, self.bucket)
        return (rows * code["norm"][:, None]).flatten()[:numel]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"norm": (Floats(), buckets(numel, self.bucket)[0]), "level": (Levels(self.levels), numel)}
