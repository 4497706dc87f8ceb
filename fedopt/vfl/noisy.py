"""Noise on what parties and the label owner tell each other, and what it spends; any strategy over vertical data.

Every entry of a message is clipped to [-C, C] and gets noise of its own:

    v_j  ->  clip(v_j, -C, C) + N(0, (z C)²)

Two sides are covered, each by itself:

    up      all vectors that parties answer with, from a party's own key, but for the programs `tell ...`, by which the
            label owner scores
    down    all vectors of people that the owner sends (multipliers, their changes and references, gradients), from the
            key of the plan; the owner itself goes on with its own numbers without noise

The direction `u` of the power iteration carries no label and goes down as it stands.

**What `spent` counts.** Messages are compared where one person is replaced: at a party its features there, at the owner
its label. A replaced entry moves by 2C at the most, so e of them are as far apart as 2C √e, and T messages with noise
of deviation z C are a composition of T Gaussian mechanisms, of noise multiplier z / √e in the counting of
`fedopt.privacy`. e is what has to be thought about (`entries`):

    labels      e = c, the outputs of a person: given what was said before, the owner's entries of a person follow from
                that person's own label. With a top network at the owner they do not, since its weights have seen all
                labels: then e is the length of a message.
    features    e = c is what a party's entries *of this person* tell. The party's weights have learnt from this
                person's features too and move the entries of everybody else, by less, but by nothing that is bounded
                below 2C: against who reads whole messages, e = m c.

**What is not covered.** Scores: each evaluation tells the owner the sum of the parties' outputs as it is, as does the
exchange `tell train` with which a run begins or goes on without a party. Scalars, up (`penalty`, and what an adaptive
step asks for) and down (an adaptive step). Which values of C and z were tried. In floating point, noise is normal but
for its last bits. And the noise follows from the seed of the run, that a resumed run has the same bits: in a deployment
the owner knows that seed, so that what is here is a measurement of what noise does to training and to attacks, and no
protection of real people.

That only some people are in a batch spends no less, since parties know the draw: every message counts for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedopt import keys, privacy
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import (
    Carry,
    Client,
    ClientProgram,
    Coded,
    Exchange,
    FedoptError,
    Info,
    Named,
    Programs,
    Replies,
    State,
    Strategy,
    Uplink,
)

SCORES = "tell "
"""How the names of the programs begin by which the label owner scores."""

LABELLESS = frozenset({"u"})
"""Vectors sent down that follow from features and random numbers alone."""


class Messages(NamedTuple):
    """How many vectors with noise one party sent, and one was sent."""

    up: int
    down: int


@dataclass(frozen=True)
class Noisy:
    """`inner` with noise on its messages; its state is that of `inner`.

    clip: C, of one entry of what parties answer, in its units. down: C of what they are told, whose units are others
        (with `normalise`, multipliers are as small as 1/√m); None is `clip`. noise_multiplier: z.

    A power iteration on noisy messages finds another λ_max, so `step` is better given. Compression goes around the
    noise, `Compressed(Noisy(inner, ...), ...)`; a codec of the strategy's own on the way down is refused.

    Raises ConfigError for a clip or a noise multiplier that is not positive.
    """

    inner: Strategy
    clip: float
    noise_multiplier: float
    down: float | None = None

    def __post_init__(self) -> None:
        given = {"clip": self.clip, "noise_multiplier": self.noise_multiplier, "down": self._down}
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"privacy.{name}", f"a number above 0 is needed; {value} was given")

    def __getattr__(self, name: str) -> Any:
        # other modules ask by hasattr whether a strategy has these
        if name in ("lengths", "predicted"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def programs(self, problem: Problem) -> Programs:
        inner = self.inner.programs(problem)
        if inner.coded:
            raise FedoptError(
                "noise has to be added before a message is compressed, and this strategy compresses its own; take"
                " Compressed(Noisy(strategy, ...), ...)"
            )
        work = {
            name: program if name.startswith(SCORES) else self._telling(program) for name, program in inner.work.items()
        }
        return inner._replace(work=work)

    def init(self, problem: Problem, key: Tensor) -> State:
        return self.inner.init(problem, key)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        exchange = self.inner.plan(problem, state, key)
        key = keys.fold(key, "noisy")
        return exchange._replace(
            down={**exchange.down, **self._told(exchange.down, 0, exchange.coded, key)},
            own={**exchange.own, **self._told(exchange.own, 1, exchange.coded, key)},
        )

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        return self.inner.absorb(problem, state, replies, key)

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state)

    def spent(self, messages: int, delta: float, entries: int = 1) -> float:
        """ε at `delta` of so many messages with noise of which one person moves so many entries; see the module.

        messages: of one party, or of the owner to all; `counted` has those of an exchange. Raises ConfigError
        where the accountant is not installed.
        """
        return privacy.epsilon(self.noise_multiplier / math.sqrt(entries), messages, delta)

    def _telling(self, program: ClientProgram) -> ClientProgram:
        """The program, whose vectors get noise at the end."""

        def finish(client: Client, carry: Carry) -> Uplink:
            uplink = program.finish(client, carry)
            vectors = {
                name: self._covered(value, keys.fold(client.key, "noisy", name), self.clip)
                for name, value in uplink.vectors.items()
            }
            return uplink._replace(vectors=vectors)

        return program._replace(finish=finish)

    def _told(self, said: Named, rows: int, coded: Mapping[str, Coded], key: Tensor) -> Named:
        """Of what is sent down, the vectors that may tell of labels, with noise."""
        found = {}
        for name in _labelled(said, rows):
            if name in coded:
                raise ConfigError(
                    "compression.down",
                    f"'{name}' is compressed by '{coded[name].codec}' before noise could be added; remove"
                    " [compression.down] or the noise",
                )
            found[name] = self._covered(said[name], keys.fold(key, name), self._down)
        return found

    @property
    def _down(self) -> float:
        return self.clip if self.down is None else self.down

    def _covered(self, v: Tensor, key: Tensor, clip: float) -> Tensor:
        noise = keys.normal(key, *v.shape, dtype=v.dtype)
        told = v.clamp(-clip, clip) + self.noise_multiplier * clip * noise
        # what is not finite stays so, that it is rejected by name
        return torch.where(torch.isfinite(v), told, v)


def counted(replies: Replies) -> Messages:
    """How many messages with noise an exchange with `Noisy` had.

    What went to each party as a vector of its own counts for every party asked, since the answers of all that follow
    tell a little of each.
    """
    exchange = replies.exchange
    up = 0 if exchange.program.startswith(SCORES) else len(replies.vectors)
    each = len(_labelled(exchange.own, 1)) * exchange.clients.numel()
    return Messages(up, len(_labelled(exchange.down, 0)) + each)


def _labelled(said: Named, rows: int) -> list[str]:
    """Names of all vectors of numbers but those that are known to carry no label."""
    return [
        name
        for name, value in said.items()
        if name not in LABELLESS and value.is_floating_point() and value.dim() > rows
    ]
