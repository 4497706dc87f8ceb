"""No compression: floats as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedopt.compression._fields import Field, Floats
from fedopt.registry import declare
from fedopt.types import Named

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@declare(kind="exact", error=lambda numel: 0.0, zeros=True, examples=({}, {"dtype": "float64"}))
@dataclass(frozen=True)
class none:
    """Every entry as a little-endian IEEE 754 float: 4 d bytes, or 8 d.

    Exact, bit by bit, in that dtype; a vector of another one is rounded to the nearest number.

    dtype: of the entries on the wire.
    """

    dtype: Literal["float32", "float64"] = "float32"

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        return {"entries": x.to(DTYPES[self.dtype])}

    def restore(self, code: Named, numel: int) -> Tensor:
        return code["entries"]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"entries": (Floats(DTYPES[self.dtype]), numel)}
