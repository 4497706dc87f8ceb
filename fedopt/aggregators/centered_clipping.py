"""Centred clipping: every row pulls the last aggregate towards itself, but only so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._rows import combined, lengths, shrinking
from fedopt.registry import declare
from fedopt.types import FedoptError, Info, State


@declare(
    reference="Karimireddy, He, Jaggi 2021, 'Learning from History for Byzantine Robust Optimization', arXiv"
    " 2012.10333, centered clipping",
    scope="vector",
    examples=({}, {"tau": 10.0, "iterations": 3}),
)
@dataclass(frozen=True)
class centered_clipping:
    """The last aggregate, moved by the mean of the differences to the rows, each of which counts as τ long at most.

        v <- v + (1/n) Σᵢ (xᵢ - v) min(1, τ / ‖xᵢ - v‖),    from v = the last aggregate, `iterations` times;  delta = v

    tau: τ, how long a difference may be.
    iterations: how often v is moved.
    centre: where v starts; "previous" is the last aggregate (0 in the first round), "zero" is 0 in every round.

    Returns `[d]` from `updates [n, d]`; info has the factor of each row in the delta as `trust [n]`, whose sum falls
    short of 1 by the factor of the start, and how many rows were `clipped` in the last iteration.

    Differences from the paper: none with the defaults; clients that send momentum, as it asks for, are the strategy's
    part, and client weights play no part. The BANT authors' program clips each tensor by itself around 0, as
    `centre = "zero"` does for the whole vector, and in further iterations adds the same differences again.
    """

    tau: Annotated[float, pydantic.Field(gt=0.0)] = 0.1
    iterations: Annotated[int, pydantic.Field(ge=1)] = 1
    centre: Literal["previous", "zero"] = "previous"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"previous"} if self.centre == "previous" else ())

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State, *, previous: Tensor | None = None) -> tuple[Tensor, State, Info]:
        """`updates [n, d]`, the last aggregate `[d]` -> delta `[d]`."""
        if self.centre == "zero":
            v = updates.new_zeros(updates.shape[1])
        elif previous is not None:
            v = previous
        else:
            raise FedoptError('centered_clipping with centre = "previous" needs the last aggregate (previous)')
        trust, factors = updates.new_zeros(updates.shape[0], dtype=torch.float64), None
        for _ in range(self.iterations):
            factors = shrinking(lengths(updates, v), self.tau)
            pull = factors / updates.shape[0]
            v = (1.0 - pull.sum()).to(v.dtype) * v + combined(pull, updates)
            trust = (1.0 - pull.sum()) * trust + pull
        clipped = 0 if factors is None else int((factors < 1.0).sum())
        return v, state, {"trust": trust, "clipped": clipped}
