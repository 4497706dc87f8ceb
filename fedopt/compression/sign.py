"""Signs, one bit each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedopt.compression._fields import Bits, Field, Floats
from fedopt.compression._rounding import mean
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, 'signSGD: Compressed Optimisation for Non-Convex"
    " Problems', algorithm 1; Karimireddy, Rebjock, Stich, Jaggi 2019, 'Error Feedback Fixes SignSGD and other Gradient"
    " Compression Schemes', lemma 8",
    kind=lambda scale: "contraction" if scale == "mean" else "biased",
    error=lambda numel, scale: 1.0 - 1.0 / numel if scale == "mean" else float("inf"),
    examples=({}, {"scale": "one"}),
)
@dataclass(frozen=True)
class sign:
    """The sign of each entry, +1 for 0, and one magnitude for all of them.

        C(x) = (‖x‖₁ / d) sign(x),    ‖C(x) - x‖² = (1 - ‖x‖₁² / (d ‖x‖₂²)) ‖x‖₂² <= (1 - 1/d) ‖x‖₂²

    scale: "mean" of the magnitudes, or "one", the bare signs that majority votes count.

    Differences from the paper: Karimireddy and others scale layer by layer.
    """

    scale: Literal["mean", "one"] = "mean"

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        x = x.to(torch.float32)
        code = {"negative": x < 0}
        return {"scale": mean(x.abs(), x.shape[-1])[None], **code} if self.scale == "mean" else code

    def restore(self, code: Named, numel: int, out: Tensor | None = None) -> Tensor:
        scale = code["scale"] if self.scale == "mean" else code["negative"].new_ones(1, dtype=torch.float32)
        if out is None:
            return (1.0 - 2.0 * code["negative"].to(torch.float32)) * scale
        return out.copy_(code["negative"]).mul_(-2.0).add_(1.0).mul_(scale)

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        fields: dict[str, tuple[Field, int]] = {"scale": (Floats(), 1)} if self.scale == "mean" else {}
        return {**fields, "negative": (Bits(1), numel)}
