"""Attackers in a deployment: each writes its own vectors, in its own program.

In a simulation the adversary stands between clients and server and knows what the experiment lets it know. Here the
server does not touch what clients send. It tells each attacker what the attack is on offer of the exchange (how many
take part, which of the attackers it is), and an attack that would have to see another client's vectors is refused.

With a codec, an attacker's vectors go through it like everybody's, since that is what a message can hold; in a
simulation the adversary replaces the vectors that come out of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt import keys
from fedopt.engine.adversary import Adversary, Execute, Group, Moment, again, divided
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import (
    Carry,
    Client,
    ClientProgram,
    Exchange,
    Info,
    Named,
    Programs,
    Replies,
    State,
    Strategy,
    Uplink,
)

PREFIX = "attack."
"""Of what an attacker is told beside what everybody is."""

ALONE = ("nothing", "own", "data", "samples")
"""What an attacker may know who sees nobody else."""


class Told(Adversary):
    """The attackers of a run, who write themselves what they send."""

    def attacked(self, execute: Execute, exchange: Exchange, moment: Moment) -> Replies:
        """`execute(exchange)`, in which those who attack now are told to. Rows, since the simulation looks at rows."""
        writing, parts = self.active(exchange, moment)
        if not writing and not parts:
            return execute(exchange)
        own = dict(exchange.own)
        if writing:
            own |= _told(exchange.clients, writing, moment)
        rows = exchange._replace(reduce="rows", own=own)
        altered = [(clients, execute, rows._replace(batches=batches)) for clients, batches in parts]
        return again(divided(execute, rows, altered) if altered else execute(rows), exchange)


def refuse(adversary: Adversary) -> None:
    """Raise ConfigError for an attack that no deployed client can carry out."""
    for i, group in enumerate(adversary.groups):
        if group.attack.knowledge not in ALONE:
            raise ConfigError(
                f"attack.{i}.name",
                f"'{group.attack.name}' sees what other clients send ({group.attack.knowledge}), which nobody does in a"
                f" deployment; take an attack that knows {' or '.join(ALONE)}, or run it in simulation",
            )


def _told(clients: Tensor, writing: list[tuple[int, Group]], moment: Moment) -> Named:
    """For each client: the number of its group, -1 for nobody's; which of how many it is there; and what all know."""
    n = clients.numel()
    group, i, b = torch.full((n,), -1), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    for number, acting in writing:
        mine = torch.isin(clients, acting.clients)
        group[mine], i[mine], b[mine] = number, torch.arange(int(mine.sum())), int(mine.sum())
    told = {"group": group, "i": i, "b": b, "n": torch.full((n,), n), "round": torch.full((n,), moment.round)}
    return {PREFIX + name: value for name, value in {**told, "key": moment.key.expand(n)}.items()}


@dataclass(frozen=True)
class Attacking:
    """A strategy whose clients do as they are told by `Told`; for the one client who runs it."""

    inner: Strategy
    adversary: Adversary

    def programs(self, problem: Problem) -> Programs:
        programs = self.inner.programs(problem)
        work = {name: self._writing(problem, program) for name, program in programs.work.items()}
        return programs._replace(work=work)

    def init(self, problem: Problem, key: Tensor) -> State:
        return self.inner.init(problem, key)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        return self.inner.plan(problem, state, key)

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        return self.inner.absorb(problem, state, replies, key)

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state)

    def _writing(self, problem: Problem, program: ClientProgram) -> ClientProgram:
        def finish(client: Client, carry: Carry) -> Uplink:
            uplink = program.finish(client, carry)
            told = {n.removeprefix(PREFIX): int(v) for n, v in client.own.items() if n.startswith(PREFIX)}
            if "delta" not in uplink.vectors or not 0 <= told.get("group", -1) < len(self.adversary.groups):
                return uplink
            return uplink._replace(vectors=self._written(problem, client, uplink.vectors, told))

        return program._replace(finish=finish)

    def _written(self, problem: Problem, client: Client, vectors: Named, told: dict[str, int]) -> Named:
        attack = self.adversary.groups[told["group"]].attack
        assert attack.vectors is not None
        written = dict(vectors)
        for name, own in vectors.items():
            if own.shape != vectors["delta"].shape:
                continue
            # row i of the answer depends on row i alone, so the other attackers' rows may be anything
            rows = own.new_zeros(told["b"], own.numel())
            rows[told["i"]] = own
            offers = {
                "n": told["n"],
                "key": keys.fold(torch.tensor(told["key"]), "attack", told["group"], name),
                "round": told["round"],
                "own": rows,
                "model": client.down.get("params", problem.initial["params"]),
                "fresh": self.adversary.fresh,
            }
            written[name] = attack.vectors(rows, told["b"], **offers)[told["i"]]
        return written
