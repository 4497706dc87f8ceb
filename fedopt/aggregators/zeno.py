"""Zeno: the updates that lower a trial loss most for their length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators._rows import lengths
from fedopt.aggregators._trust import combined
from fedopt.registry import declare
from fedopt.types import FedoptError, Info, Trial


@declare(
    reference="Xie, Koyejo, Gupta 2019, 'Zeno: Distributed Stochastic Gradient Descent with Suspicion-based"
    " Fault-tolerance', definitions 2 and 3",
    scope="vector",
    requires="n >= b + 1",
    admits=lambda n, b: n >= b + 1,
    examples=({"b": 5}, {"b": 7, "rho": 0.05, "batch": 8}),
    exceptions={"translation": "an update's own length is part of its score"},
)
@dataclass(frozen=True)
class zeno:
    """The mean of the n - b updates with the best scores: descent of the trial loss, less a penalty on the length.

        scoreᵢ = F(x) - F(x + Δᵢ) - ρ ‖Δᵢ‖²
        delta = 1/(n - b) · Σ of the n - b rows with the largest scores

    F is the mean loss over trial samples that the server holds. F(x) is the same in all scores and is not computed.
    Equal scores go to the row that stands first. With b = 0 this is the plain mean.

    b: number of rows left out, at least the number of attackers.
    rho: ρ, the weight of the squared length.
    batch: how many trial samples F is the mean of, another draw in each exchange; all of them without it.

    Differences from the paper: Δᵢ stands for its -γvᵢ, so its ρ‖vᵢ‖² is (ρ/γ²)‖Δᵢ‖² here. A row whose score is not
    finite is never kept, so that fewer than n - b rows may be averaged; where none is left, nothing moves. Client
    weights play no part.
    """

    b: Annotated[int, pydantic.Field(ge=0)]
    rho: Annotated[float, pydantic.Field(ge=0.0)] = 5e-4
    batch: Annotated[int | None, pydantic.Field(ge=1)] = None

    def init(self, n: int) -> tuple[()]:
        return ()

    def apply(self, updates: Tensor, state: tuple[()], *, trial: Trial, key: Tensor) -> tuple[Tensor, tuple[()], Info]:
        """`updates [n, d]` -> delta `[d]`; info has the weights as `trust [n]`.

        Raises FedoptError unless n >= b + 1, and where the trial set is smaller than `batch`.
        """
        n = updates.shape[0]
        if n < self.b + 1:
            raise FedoptError(f"zeno with b = {self.b} needs n >= b + 1 = {self.b + 1} rows, {n} were given")
        losses = trial.loss(updates, rows=self._drawn(trial, key)).to(torch.float64)
        scores = -losses - self.rho * lengths(updates).square()
        scores = torch.where(torch.isfinite(scores), scores, -torch.inf)
        best = torch.argsort(scores, descending=True, stable=True)[: n - self.b]
        best = best[torch.isfinite(scores[best])]
        trust = torch.zeros_like(scores)
        if best.numel() == 0:
            reason = f"none of {n} updates has a finite score"
            return updates.new_zeros(updates.shape[1]), state, {"trust": trust, "kept_model": reason}
        trust[best] = 1.0 / best.numel()
        return combined(trust, updates), state, {"trust": trust}

    def _drawn(self, trial: Trial, key: Tensor) -> Tensor | None:
        if self.batch is None:
            return None
        if self.batch > trial.size:
            raise FedoptError(
                f"zeno with batch = {self.batch} needs as many trial samples, there are {trial.size};"
                f" lower the batch or hold out more"
            )
        return keys.sample(keys.fold(key, "zeno"), trial.size, self.batch)
