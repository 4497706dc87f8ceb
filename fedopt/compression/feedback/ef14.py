"""Error feedback: what was not sent is added to what comes next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression.feedback import Code, Sent
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Seide, Fu, Droppo, Li, Yu 2014, '1-Bit Stochastic Gradient Descent and its Application to Data-Parallel"
    " Distributed Training of Speech DNNs', section 3.1; Karimireddy, Rebjock, Stich, Jaggi 2019, 'Error Feedback Fixes"
    " SignSGD and other Gradient Compression Schemes', algorithm 2",
    needs=("exact", "contraction"),
)
@dataclass(frozen=True)
class ef14:
    """p = e + x,    row = C(p),    e <- p - C(p),    e = 0 at first.

    Sent and kept make up what was wanted: row + e_new = x + e_old, so over all rounds nothing is lost but the last e.

    Differences from the paper: x is the client's whole update, step sizes included, as there.
    """

    def start(self, numel: int) -> Named:
        return {"error": torch.zeros(numel)}

    def step(self, x: Tensor, kept: Named, code: Code) -> Sent:
        wanted = kept["error"] + x
        row = code(wanted)
        return Sent(row, {"error": wanted - row})
