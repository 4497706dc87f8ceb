"""What strategies over vertically split data share: exchanges with all parties, and what becomes of missing ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Batch, Batches, Client, ClientProgram, Exchange, FedoptError, Named, Replies, Uplink
from fedopt.vfl.blocks import Block
from fedopt.vfl.penalties import Penalty

Absent = Literal["wait", "without"]
Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
Below = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]

WHOLE = Batches(split="train", size=None, shuffle=False)
"""A party's whole block at once, in the order of the people."""

STARTED = "weights"
"""Key of a party's memory that holds its weights."""

TELL = "tell"
"""First word of the programs whose answer is the sum that the label owner scores."""


POWERS = 100
"""Steps of the power iteration at most,"""

SETTLED = 1e-3
"""which ends when λ_max changes by less than such a share in a step,"""

ABOVE = 1.05
"""and comes to it from below."""


class Power(NamedTuple):
    """A power iteration for λ_max(A Aᵀ) over the parties."""

    direction: Tensor
    """`[m c]`; nothing where it is done or was not asked for."""
    steps: int
    largest: float
    """λ_max so far."""

    @property
    def going(self) -> bool:
        return self.direction.numel() > 0


def powers(size: int, key: Tensor, dtype: torch.dtype) -> Power:
    """From a random direction."""
    return Power(keys.normal(keys.fold(key, "power"), size, dtype=dtype), 0, 0.0)


def powered(power: Power, image: Tensor) -> Power:
    """After a step, `image = A Aᵀ direction`; at the end, `largest` is a little above λ_max.

    Raises ConfigError where all features are 0.
    """
    length, before = float(image.norm()), float(power.direction.norm())
    if length == 0:
        raise ConfigError("data", "the features of all parties are 0")
    lam, count = length / before, power.steps + 1
    if abs(lam - power.largest) > SETTLED * lam and count < POWERS:
        return Power(image / length, count, lam)
    return Power(image[:0], count, ABOVE * lam)


class Presence(NamedTuple):
    """Who is still there, and how often in a row an exchange lacked somebody."""

    there: Tensor
    """`[n]` bool"""
    lacking: int


def everybody(problem: Problem) -> Presence:
    """At the start."""
    return Presence(torch.ones(problem.clients, dtype=torch.bool), 0)


def parties(presence: Presence) -> Tensor:
    """Ids of who is still there."""
    return torch.nonzero(presence.there).flatten()


def heard(
    problem: Problem, presence: Presence, replies: Replies, absent: Absent, patience: int
) -> tuple[Presence, bool, str]:
    """(who is there now, whether the exchange is whole, what to tell).

    An exchange that lacks a party is made again. After `patience` exchanges in a row the run ends with an error
    (`wait`), or goes on without the features of who is missing (`without`).
    """
    asked = replies.exchange.clients
    missing = asked[~torch.isin(asked, replies.clients)]
    if missing.numel() == 0:
        return presence._replace(lacking=0), True, ""
    reasons = {r.client: r.reason for r in (*replies.rejected, *replies.silent)}
    names = "; ".join(
        f"{problem.data.name(i)}" + (f" ({reasons[i]})" if i in reasons else "") for i in missing.tolist()
    )
    lacking = presence.lacking + 1
    if lacking < patience:
        return presence._replace(lacking=lacking), False, f"made again, no answer from {names}"
    if absent == "wait":
        raise FedoptError(
            f"{patience} exchanges in a row had no answer from {names}; every party's part of the sum is needed. Bring"
            ' it back and resume, raise strategy.patience, or allow strategy.absent = "without"'
        )
    there = presence.there.clone()
    there[missing] = False
    if not bool(there.any()):
        raise FedoptError(f"no party is left; the last to go: {names}")
    return Presence(there, 0), False, f"goes on without {names}"


def total(replies: Replies, name: str) -> Tensor:
    """Σ_i of a vector that all parties sent with weight 1, whether as rows or as their mean."""
    rows = replies.vectors[name]
    return (rows * replies.weights[:, None].to(rows.dtype)).sum(dim=0)


def answering(
    work: Callable[[Client, Tensor], tuple[Named, Named, Named]],
    vectors: Mapping[str, int],
    kept: Iterable[str] = (),
    metrics: Iterable[str] = (),
) -> ClientProgram:
    """A program of one batch, the party's whole block: `work(client, features) -> (vectors, memory, metrics)`.

    vectors: with their lengths; kept: keys of the memory; metrics: of those that `work` gives.
    """
    names, numbers = tuple(kept), tuple(metrics)

    def start(client: Client) -> tuple[Named, Named, Named]:
        like = client.memory[STARTED]
        blank = {name: like.new_zeros(length) for name, length in vectors.items()}
        return blank, {name: torch.zeros_like(client.memory[name]) for name in names}, dict.fromkeys(numbers, like[0])

    def step(client: Client, carry: Any, batch: Batch) -> tuple[Named, Named, Named]:
        return work(client, batch["x"])

    def finish(client: Client, carry: tuple[Named, Named, Named]) -> Uplink:
        found, memory, told = carry
        return Uplink(found, told, memory, torch.ones_like(client.samples, dtype=client.memory[STARTED].dtype))

    return ClientProgram(start, step, finish)


def telling(
    problem: Problem, block: Block, penalty: Penalty, outputs: int, weights: str = STARTED
) -> dict[str, ClientProgram]:
    """Programs `tell <split>`: the outputs of a party's bottom network as it stands, and the metric `penalty`."""

    def work(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
        mine = client.memory[weights]
        return {"outputs": block.forward(mine, x)}, {}, {"penalty": penalty.value(mine)}

    lengths = {split: outputs * int(held.sizes[0]) for split, held in problem.data.splits.items()}
    return {f"{TELL} {split}": answering(work, {"outputs": n}, (), ("penalty",)) for split, n in lengths.items()}


def longest(problem: Problem, outputs: int) -> int:
    """Entries of the longest vector that travels: so many numbers for each person."""
    return outputs * max(int(held.sizes[0]) for held in problem.data.splits.values())


def powering(block: Block, length: int) -> ClientProgram:
    """A step of the power iteration for λ_max(A Aᵀ): from `u [m c]` sent down to `A_i A_iᵀ u`."""

    def work(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
        weights = client.memory[STARTED]
        return {"outputs": block.forward(block.pull(weights, x, client.down["u"]), x)}, {}, {}

    return answering(work, {"outputs": length})


def ask(program: str, clients: Tensor, down: Named, *, rows: bool = False, own: Named | None = None) -> Exchange:
    """An exchange about everything that these parties hold."""
    return Exchange(program, clients, down, own or {}, WHOLE, "rows" if rows else "mean")
