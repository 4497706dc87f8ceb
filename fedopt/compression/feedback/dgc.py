"""Deep gradient compression: error feedback whose momentum is each coordinate's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.compression.feedback import Code, Sent
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Lin, Han, Mao, Wang, Dally 2018, 'Deep Gradient Compression: Reducing the Communication Bandwidth for"
    " Distributed Training', algorithm 4 without clipping and warm-up",
    needs=("exact", "contraction"),
    exceptions={"sum": "with the momentum m, more than the vector is sent"},
    examples=({}, {"momentum": 0.5}),
)
@dataclass(frozen=True)
class dgc:
    """u <- m u + x,    v <- v + u,    row = C(v),    v <- v - row,    u <- 0 where row is not 0.

    Momentum is added up while a coordinate waits, not after it was sent, and stops when it is sent (momentum factor
    masking). With m = 0 this is error feedback.

    momentum: m.

    Differences from the paper: gradients are not clipped, the share of entries does not grow towards its end value,
    and the mask is where the codec's answer is not 0, so that any codec will do.
    """

    momentum: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.9

    def start(self, numel: int) -> Named:
        return {"momentum": torch.zeros(numel), "error": torch.zeros(numel)}

    def step(self, x: Tensor, kept: Named, code: Code) -> Sent:
        momentum = self.momentum * kept["momentum"] + x
        wanted = kept["error"] + momentum
        row = code(wanted)
        return Sent(row, {"momentum": torch.where(row == 0, momentum, 0.0), "error": wanted - row})
