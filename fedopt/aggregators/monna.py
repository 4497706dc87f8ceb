"""MoNNA: the rows that are nearest to one that is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._rows import combined, lengths
from fedopt.registry import declare
from fedopt.types import FedoptError, Info, State


@declare(
    reference="Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan 2023, 'Robust Collaborative Learning with Linear"
    " Gradient Overhead', arXiv 2209.10931, nearest neighbour averaging",
    scope="vector",
    requires="n >= 2f + 1",
    admits=lambda n, f: n >= 2 * f + 1,
    examples=({"f": 4}, {"f": 3, "pivot": 0}),
)
@dataclass(frozen=True)
class monna:
    """The mean of the n - f rows that are nearest to a trusted one, the pivot.

        delta = (1/(n - f)) Σ of the n - f rows xᵢ with the smallest ‖xᵢ - pivot‖

    Equal distances go to the row that stands first. The pivot is the server's own update, trained on its own samples,
    or the row of a client that is trusted; a client's row is one of the n, the server's update is not.

    f: number of attackers to withstand.
    pivot: id of the trusted client; None is the server itself.

    Returns `[d]` from `updates [n, d]`; info has 1/(n - f) for the rows in the mean and 0 for the others as
    `trust [n]`. In an exchange without the trusted client nothing is trusted: the delta is 0, and `kept_model` says so.
    Raises FedoptError unless n >= 2f + 1.

    Differences from the paper: there every device of a network without a server takes its own vector as the pivot, and
    sends momentum; on a server the one that is trusted has to be named, and what is sent is the strategy's.
    """

    f: Annotated[int, pydantic.Field(ge=0)]
    pivot: Annotated[int | None, pydantic.Field(ge=0)] = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference" if self.pivot is None else "clients"})

    def init(self, n: int) -> State:
        return ()

    def apply(
        self, updates: Tensor, state: State, *, clients: Tensor | None = None, reference: Tensor | None = None
    ) -> tuple[Tensor, State, Info]:
        """`updates [n, d]`, and ids of the rows `[n]` or the server's update `[d]` -> delta `[d]`."""
        n = updates.shape[0]
        if n < 2 * self.f + 1:
            raise FedoptError(f"monna with f = {self.f} needs n >= 2f + 1 = {2 * self.f + 1} rows, got {n}")
        trust = updates.new_zeros(n, dtype=torch.float64)
        trusted = self._pivot(updates, clients, reference)
        if trusted is None:
            reason = f"the trusted client {self.pivot} is not one of the {n} of this exchange"
            return updates.new_zeros(updates.shape[1]), state, {"trust": trust, "kept_model": reason}
        nearest = torch.argsort(lengths(updates, trusted), stable=True)[: n - self.f]
        trust[nearest] = 1.0 / (n - self.f)
        return combined(trust, updates), state, {"trust": trust}

    def _pivot(self, updates: Tensor, clients: Tensor | None, reference: Tensor | None) -> Tensor | None:
        if self.pivot is None:
            if reference is None:
                raise FedoptError("monna without a pivot needs the server's own update (reference)")
            return reference
        if clients is None:
            raise FedoptError(f"monna with pivot = {self.pivot} needs the ids of the rows (clients)")
        found = torch.nonzero(clients == self.pivot).flatten()
        return updates[int(found[0])] if found.numel() else None
