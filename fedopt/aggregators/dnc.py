"""Divide and Conquer: updates that stick out along the direction of the largest spread are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators._trust import combined
from fedopt.registry import declare
from fedopt.types import FedoptError, Info


def removed(f: int, c: float) -> int:
    """How many rows are left out in one iteration: c · f, rounded up."""
    # 0.1 * 30 is just above 3 in floating point
    return math.ceil(c * f - 1e-9)


@declare(
    reference="Shejwalkar, Houmansadr 2021, 'Manipulating the Byzantine: Optimizing Model Poisoning Attacks and"
    " Defenses for Federated Learning', algorithm 2",
    scope="vector",
    requires=lambda f, c: "n >= 2f + 1" if 2 * f >= removed(f, c) else "n >= c * f + 1",
    admits=lambda n, f, c: n >= max(2 * f, removed(f, c)) + 1,
    examples=({"f": 3}, {"f": 3, "c": 0.5, "coordinates": 2, "iterations": 3}),
)
@dataclass(frozen=True)
class dnc:
    """The mean of the updates that no iteration leaves out.

        in each iteration, for a random set of coordinates: Z = the rows there, less their mean
        v = the first right singular vector of Z,    scoreᵢ = ⟨zᵢ, v⟩²
        left out: the ⌈c · f⌉ rows of the largest scores

    Attackers who move the mean far, or together, are what makes up the largest spread. Where every row is left out by
    some iteration, nothing moves.

    f: number of attackers to withstand.
    c: how many rows are left out for each of them.
    coordinates: how many coordinates an iteration sees; all of them where there are no more, and then one iteration
        does.
    iterations: how many sets of coordinates are drawn.

    Differences from the paper: c · f need not be a whole number and is rounded up; n >= 2f + 1 is asked for. Scores
    come from the Gram matrix of the rows, whose first eigenvector holds ⟨zᵢ, v⟩ up to a common factor. Client weights
    play no part.
    """

    f: Annotated[int, pydantic.Field(ge=0)]
    c: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    coordinates: Annotated[int, pydantic.Field(ge=1)] = 10_000
    iterations: Annotated[int, pydantic.Field(ge=1)] = 5

    def init(self, n: int) -> tuple[()]:
        return ()

    def apply(self, updates: Tensor, state: tuple[()], *, key: Tensor) -> tuple[Tensor, tuple[()], Info]:
        """`updates [n, d]` -> delta `[d]`; info has the weights as `trust [n]`.

        Raises FedoptError unless n >= 2f + 1 and n >= c f + 1.
        """
        n, d = updates.shape
        out = removed(self.f, self.c)
        if n < max(2 * self.f, out) + 1:
            least = max(2 * self.f, out) + 1
            raise FedoptError(
                f"dnc with f = {self.f}, c = {self.c} needs n >= max(2f, c f) + 1 = {least} rows, {n} were given"
            )
        kept = torch.ones(n, dtype=torch.bool, device=updates.device)
        whole = self.coordinates >= d
        for number in range(1 if whole else self.iterations):
            drawn = keys.fold(key, "dnc", number)
            part = updates if whole else updates[:, keys.sample(drawn, d, self.coordinates)]
            kept[torch.argsort(_scores(part), descending=True, stable=True)[:out]] = False
        trust = kept.to(torch.float64) / max(int(kept.sum()), 1)
        if not bool(kept.any()):
            reason = f"each of {n} updates is left out by one of {self.iterations} iterations"
            return updates.new_zeros(d), state, {"trust": trust, "kept_model": reason}
        return combined(trust, updates), state, {"trust": trust}


def _scores(part: Tensor) -> Tensor:
    """⟨zᵢ, v⟩² `[n]` up to a common factor."""
    wide = part.to(torch.float64)
    centred = wide - wide.mean(dim=0)
    largest = centred.abs().max()
    if not bool(largest > 0):
        return centred.new_zeros(centred.shape[0])
    # to entries of 1 at the most, so that squares of the largest rows do not overflow
    centred = centred / largest
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    scores: Tensor = values[-1] * vectors[:, -1].square()
    return scores
