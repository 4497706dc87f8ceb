"""A table of binary features over parties, and what they and the label owner tell each other in a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.data import Federation, Shards, Split
from fedopt.models.logistic import logistic
from fedopt.problem import LOSSES, Network, Problem
from fedopt.testing.strategies import play
from fedopt.types import Exchange, Info, Named, Programs, Replies, State, Strategy

DOUBLE = torch.float64


class Table(NamedTuple):
    """Two classes; every party has as many columns."""

    problem: Problem
    columns: list[Tensor]
    """Features of each party `[m, d_i]`."""
    y: Tensor
    """Labels `[m]`, 0 and 1."""


def table(
    parties: int = 3,
    *,
    people: int = 300,
    each: int = 6,
    binary: bool = True,
    seed: int = 0,
    classes: int = 2,
    width: int = 0,
) -> Table:
    """Labels by the largest of linear scores, with a little noise; columns are 0 and 1, or normal.

    width: outputs of the bottom networks, by default as many as the loss reads.
    """
    key = keys.root(seed)
    d = parties * each
    if binary:
        share = 0.3 + 0.4 * keys.uniform(keys.fold(key, "share"), d, dtype=DOUBLE)
        x = (keys.uniform(keys.fold(key, "x"), people, d, dtype=DOUBLE) < share).to(DOUBLE)
    else:
        x = keys.normal(keys.fold(key, "x"), people, d, dtype=DOUBLE)
    truth = keys.normal(keys.fold(key, "truth"), d, classes, dtype=DOUBLE)
    score = (x - x.mean(dim=0)) @ truth + 0.3 * keys.normal(keys.fold(key, "noise"), people, classes, dtype=DOUBLE)
    y = score.argmax(dim=1)
    columns = list(x.split(each, dim=1))
    rows = torch.arange(parties * people)
    offsets = people * torch.arange(parties + 1)
    shards = Shards(torch.cat(columns), rows, torch.zeros(len(rows), dtype=torch.int64), offsets)
    data = Federation({"train": shards}, {"train": Split(x[:, :0], y)}, tuple("abcdef"[:classes]))
    outputs = width or (1 if classes == 2 else classes)
    module = logistic(inputs=(each,), classes=outputs, bias=False).to(DOUBLE)
    network, initial = Network.of(module)
    loss = LOSSES["logistic" if classes == 2 else "cross_entropy"]
    start = torch.zeros_like(initial["params"])
    if width:  # a top network that is told zeros by all has no gradient
        start = keys.normal(keys.fold(key, "start"), start.numel(), dtype=DOUBLE)
    problem = Problem(network, data, loss, {"params": start})
    return Table(problem, columns, y)


@dataclass(frozen=True)
class Recording:
    """`inner`, with every party's own vectors, as somebody sees them who reads all messages."""

    inner: Strategy
    heard: list[Replies] = field(default_factory=list)

    def programs(self, problem: Problem) -> Programs:
        return self.inner.programs(problem)

    def init(self, problem: Problem, key: Tensor) -> State:
        return self.inner.init(problem, key)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        return self.inner.plan(problem, state, key)._replace(reduce="rows")

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        self.heard.append(replies)
        return self.inner.absorb(problem, state, replies, key)

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state)


class Recorded(NamedTuple):
    replies: list[Replies]
    weights: Tensor
    """The parties' at the end `[n, d_i]`."""
    state: Any

    def told(self, name: str = "multipliers", outputs: int = 1) -> Tensor:
        """What all parties were told `[K, m, c]`, of exchanges in which it was not zeros."""
        vectors = [r.exchange.down[name] for r in self.replies if name in r.exchange.down]
        return torch.stack([v.reshape(-1, outputs) for v in vectors if bool(v.any())])

    def sent(self, party: int) -> Tensor:
        """What a party has answered `[m, K]`, but for scores."""
        return torch.stack([rows[party] for rows in self._rows()], dim=1)

    def summed(self) -> Tensor:
        """The same of all parties together: what the owner sees where sums are secure."""
        return torch.stack([rows.sum(dim=0) for rows in self._rows()], dim=1)

    def _rows(self) -> list[Tensor]:
        kept = [r for r in self.replies if not r.exchange.program.startswith("tell ")]
        return [rows for r in kept for rows in r.vectors.values()]


def record(problem: Problem, strategy: Strategy, rounds: int) -> Recorded:
    """A run of so many rounds and all its messages."""
    recording = Recording(strategy)
    played = play(problem, recording, rounds)
    everybody = torch.arange(problem.clients)
    return Recorded(recording.heard, played.memory.of(everybody)["weights"], played.state)
