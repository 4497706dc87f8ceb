"""Safeguard: clients whose sums of updates over two windows stray from the majority are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators._trust import combined
from fedopt.registry import declare
from fedopt.types import Info

Rounds = Annotated[int, pydantic.Field(ge=1)]


class Windows(NamedTuple):
    """State, by client id: who is still good `[N]`, and the sums of updates in both windows `[N, d]`.

    The sums are empty before the first round, and where a window is one round long.
    """

    round: int
    good: Tensor
    short: Tensor
    long: Tensor


@declare(
    reference="Allen-Zhu, Ebrahimianghazani, Li, Alistarh 2021, 'Byzantine-Resilient Non-Convex Stochastic Gradient"
    " Descent', algorithm 1, with the thresholds that its experiments take from the data",
    scope="vector",
    examples=({"multiplier": 0.4, "short": 2, "long": 3}, {"noise": 0.1, "released": True}),
)
@dataclass(frozen=True)
class safeguard:
    """The mean of the updates of the good clients, who stay near the majority in two windows of rounds.

        Aᵢ <- Aᵢ + Δᵢ / |good|                         for each window, from 0 at the window's start
        scoreᵢ = the r-th smallest of ‖Aᵢ - Aⱼ‖ over good j, c = the good client of the smallest score
        good <- {i in good: ‖Aᵢ - A_c‖ <= 2 · multiplier · min(cap, score_c) in both windows}
        delta = mean of Δᵢ over good, + noise · N(0, I)

    r = ⌈n/2 + 1⌉ of the n clients of this exchange, where i itself counts as the first, at distance 0: more than half
    of them are as near to c as its score says. Who was left out stays out until the long window starts again. Equal
    scores go to the smaller id. Where nobody is good, nothing moves.

    Of a part of the clients, the sums of those who are there move, and these are compared with each other.

    short, long: lengths of the windows in rounds.
    multiplier, cap: how far from the centre is too far.
    rank: r; to withstand f attackers, n - f is the largest that does.
    noise: standard deviation of the noise in each coordinate.
    released: as in the program that BANT is compared with: r = ⌈n/2⌉, < in place of <=, and who was left out is
        judged afresh in every round.

    Differences from the paper: its thresholds are constants of the theory, or, in its experiments, taken from the data
    as above. It steps with the good clients of before the check, here with those after it. It never starts the set of
    good clients again, which would leave out for good whoever strayed once.
    """

    short: Rounds = 1
    long: Rounds = 6
    multiplier: Annotated[float, pydantic.Field(gt=0.0)] = 0.55
    cap: Annotated[float, pydantic.Field(gt=0.0)] = 1000.0
    rank: Annotated[int | None, pydantic.Field(ge=1)] = None
    noise: Annotated[float, pydantic.Field(ge=0.0)] = 0.0
    released: bool = False

    def __post_init__(self) -> None:
        if self.short > self.long:
            raise ValueError(f"short <= long is needed, short = {self.short} and long = {self.long} were given")

    def init(self, n: int) -> Windows:
        return Windows(0, torch.ones(n, dtype=torch.bool), torch.zeros(0), torch.zeros(0))

    def apply(self, updates: Tensor, state: Windows, *, clients: Tensor, key: Tensor) -> tuple[Tensor, Windows, Info]:
        """`updates [n, d]`, ids of the rows `[n]` -> delta `[d]`; info has the weights as `trust [n]`."""
        n, d = updates.shape
        again = state.round % self.long == 0 and not self.released
        good = torch.ones_like(state.good) if again else state.good
        active = good[clients]
        candidates = torch.ones_like(active) if self.released else active
        part = updates / max(int(active.sum()), 1)
        kept = candidates.clone()
        after = []
        for window, sums in ((self.short, state.short), (self.long, state.long)):
            rows, sums = _added(part, clients, sums, window, state.round, good.numel())
            kept &= self._near(rows, clients, candidates)
            after.append(sums)
        good = good.index_copy(0, clients, kept)
        state = Windows(state.round + 1, good, *after)
        trust = kept.to(torch.float64) / max(int(kept.sum()), 1)
        info: Info = {"trust": trust, "good": int(good.sum())}
        if not bool(kept.any()):
            reason = f"none of {n} updates is of a client who is near the majority in both windows"
            return updates.new_zeros(d), state, {**info, "kept_model": reason}
        delta = combined(trust, updates)
        if self.noise > 0:
            delta = delta + self.noise * keys.normal(keys.fold(key, "safeguard"), d, dtype=delta.dtype)
        return delta, state, info

    def _near(self, rows: Tensor, clients: Tensor, candidates: Tensor) -> Tensor:
        """Which of the candidates are near the one in the middle, `[n]`; distances are between `rows [n, d]`."""
        if not bool(candidates.any()):
            return candidates
        n = rows.shape[0]
        distances = sq_distances(rows).sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf)
        distances[:, ~candidates] = torch.inf
        rank = self.rank or math.ceil(n / 2 if self.released else n / 2 + 1)
        last = min(rank, int(candidates.sum())) - 1
        scores = torch.where(candidates, distances.sort(dim=1).values[:, last], torch.inf)
        lowest = scores[candidates].min()
        tied = torch.nonzero(candidates & (scores == lowest))[:, 0]
        centre = tied[clients[tied].argmin()]
        limit = 2.0 * self.multiplier * min(self.cap, float(lowest))
        near = distances[centre] < limit if self.released else distances[centre] <= limit
        return near & candidates


def _added(part: Tensor, clients: Tensor, sums: Tensor, window: int, number: int, total: int) -> tuple[Tensor, Tensor]:
    """The sums of the active clients `[n, d]`, and those of all clients `[N, d]`, after this round's part."""
    fresh = number % window == 0 or sums.numel() == 0
    rows = part if fresh else sums[clients] + part
    if window == 1:
        return rows, sums
    after = part.new_zeros(total, part.shape[1]) if fresh else sums.clone()
    after[clients] = rows
    return rows, after
