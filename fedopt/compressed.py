"""A strategy whose vectors are compressed, in both directions; any strategy, any codec.

Up: whatever a client program sends under one of the names given goes through the codec and its feedback, and the server
gets the row that comes out. Programs stay pure functions of one client, with a few more keys in the client's memory.

Down: the model is sent as the compressed change from what was sent before, w <- w + C(x - w), and clients start from w
(Gruntkowska, Tyurin, Richtarik 2022, "EF21-P and Friends", algorithm 1). Who missed an exchange is sent all of w.

The codes themselves are made and read in the simulator too, their bytes are only counted, by `Codec.size`, which is
exact. A client that is somewhere else tells its codes (`spoken`), and the server reads them by `Programs.coded`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression.feedback import Feedback
from fedopt.problem import Problem
from fedopt.types import (
    Carry,
    Client,
    ClientProgram,
    Codec,
    Coded,
    Exchange,
    FedoptError,
    Hearing,
    Info,
    Named,
    Programs,
    Replies,
    Said,
    State,
    Strategy,
    Uplink,
)

PREFIX = "compression."
"""Of the keys in a client's memory and in what is sent down."""

NBYTES = PREFIX + "nbytes."
"""Of the metrics that tell how long the body of a vector is."""


class Broadcast(NamedTuple):
    """State of a strategy whose model is compressed on its way to the clients."""

    inner: State
    model: Tensor
    """w `[d]`, what the clients of the last exchange have."""
    last: Tensor
    """The exchange in which each client was sent to last `[N]`, int64; -1 before its first."""
    exchanges: int

    @property
    def round(self) -> int:
        return int(self.inner.round)


@dataclass(frozen=True)
class Compressed:
    """`inner` with compressed vectors.

    codec, feedback: of the `vectors` that clients send.
    down: of the model that they are sent; None: as it stands.
    spoken: clients tell the codes, for whoever sends them.
    """

    inner: Strategy
    codec: Codec
    feedback: Feedback
    vectors: tuple[str, ...] = ("delta",)
    down: Codec | None = None
    spoken: bool = False

    def programs(self, problem: Problem) -> Programs:
        inner, lengths = self.inner.programs(problem), self._lengths(problem)
        memory: Named = {}
        coded: dict[str, Hearing] = {}
        for vector, numel in lengths.items():
            kept = {
                **self.feedback.start(numel),
                **{f"codec.{name}": value for name, value in self.codec.start(numel).items()},
            }
            memory |= {f"{PREFIX}{vector}.{name}": value for name, value in _cast(kept, problem).items()}
            held = _cast(self.feedback.held(numel), problem)
            coded[vector] = Hearing(self.codec, held, partial(self._read, problem, numel))
        work = {name: self._sending(program, lengths) for name, program in inner.work.items()}
        return inner._replace(work=work, memory={**inner.memory, **memory}, coded=coded)

    def init(self, problem: Problem, key: Tensor) -> State:
        inner = self.inner.init(problem, key)
        if self.down is None:
            return inner
        return Broadcast(inner, problem.initial["params"], torch.full((problem.clients,), -1), 0)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        exchange = self.inner.plan(problem, state.inner if isinstance(state, Broadcast) else state, key)
        asks = self.codec.asks | self.feedback.asks
        if "shared" in asks:
            shared = keys.fold(key, "compression")
            exchange = exchange._replace(down={**exchange.down, f"{PREFIX}shared": shared})
        if "rank" in asks:
            exchange = exchange._replace(own={**exchange.own, f"{PREFIX}rank": torch.arange(exchange.clients.numel())})
        if self.down is None or not isinstance(state, Broadcast) or "params" not in exchange.down:
            return exchange
        if "params" in exchange.own:  # clients are sent models of their own, of other versions
            return exchange
        x = exchange.down["params"]
        code = self.down.compress(x - state.model, keys.fold(key, "compression down"))
        model = state.model + self.down.restore(code, problem.d).to(x.dtype)
        follows = state.last[exchange.clients] == state.exchanges - 1
        if state.exchanges == 0:  # the first model is what everybody begins with
            model, follows = x, torch.zeros_like(follows)
        nbytes = torch.where(follows, self.down.size(code, problem.d), problem.d * x.element_size())
        return exchange._replace(
            down={**exchange.down, "params": model},
            coded={**exchange.coded, "params": Coded(self.down.name, nbytes)},
            keep=(exchange.keep, model),
        )

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        exchange = replies.exchange
        if not isinstance(state, Broadcast):
            return self.inner.absorb(problem, state, replies, key)
        model, last = state.model, state.last
        if "params" in exchange.coded:
            keep, model = exchange.keep
            replies = replies._replace(exchange=exchange._replace(keep=keep))
            last = last.index_fill(0, exchange.clients, state.exchanges)
        inner, info = self.inner.absorb(problem, state.inner, replies, key)
        return Broadcast(inner, model, last, state.exchanges + 1), info

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state.inner if isinstance(state, Broadcast) else state)

    def _lengths(self, problem: Problem) -> dict[str, int]:
        """How long the vectors to be compressed are: as the model, where the strategy says nothing else of them."""
        told = self._told(problem)
        if told is None:
            return dict.fromkeys(self.vectors, problem.d)
        for name in self.vectors:
            if name not in told:
                raise FedoptError(
                    f"compression.vectors: the strategy has no vector '{name}' to compress, it has"
                    f" {', '.join(map(repr, told))}"
                )
        return {name: told[name] for name in self.vectors}

    def _told(self, problem: Problem) -> dict[str, int] | None:
        lengths: Callable[[Problem], dict[str, int]] | None = getattr(self.inner, "lengths", None)
        return None if lengths is None else lengths(problem)

    def _sending(self, program: ClientProgram, lengths: dict[str, int]) -> ClientProgram:
        """The program, whose vectors go through the codec at the end."""
        some = hasattr(self.inner, "lengths")  # then not every program sends each of them

        def finish(client: Client, carry: Carry) -> Uplink:
            uplink = program.finish(client, carry)
            if not uplink.vectors:
                return uplink
            for name in self.vectors:
                if name not in uplink.vectors:
                    if some:
                        continue
                    raise FedoptError(
                        f"compression.vectors: the strategy sends no vector '{name}', it sends"
                        f" {', '.join(map(repr, uplink.vectors))}"
                    )
                uplink = self._sent(client, name, lengths[name], uplink)
            return uplink

        return program._replace(finish=finish)

    def _sent(self, client: Client, name: str, numel: int, uplink: Uplink) -> Uplink:
        """The uplink with one vector as the server gets it."""
        x, mine = uplink.vectors[name], f"{PREFIX}{name}."
        if x.shape[-1] != numel:
            raise FedoptError(
                f"compression.vectors: '{name}' has {x.shape[-1]} entries, and {numel} were announced; vectors of the"
                " model's length can be compressed, and those whose length the strategy tells"
            )
        memory = {key.removeprefix(mine): value for key, value in client.memory.items() if key.startswith(mine)}
        kept = {key.removeprefix("codec."): value for key, value in memory.items() if key.startswith("codec.")}
        every = {
            "shared": client.down.get(f"{PREFIX}shared"),
            "rank": client.own.get(f"{PREFIX}rank"),
            "kept": kept,
        }
        offers = {offer: every[offer] for offer in self.codec.asks}
        said: list[Named] = []

        def code(v: Tensor) -> Tensor:
            said.append(self.codec.compress(v, keys.fold(client.key, "compression", name), **offers))
            return self.codec.restore(said[-1], numel).to(v.dtype)

        sent = self.feedback.step(x, memory, code, shared=every["shared"], error=self.codec.error(numel))
        nbytes = self.codec.size(said[-1], numel)
        if sent.whole is not None:
            nbytes = torch.where(sent.whole, numel * x.element_size(), nbytes)
        after = {f"codec.{key}": value for key, value in self.codec.after(said[-1], numel).items()}
        # what is not finite stays so, that it is rejected by name and never reaches a memory that is kept
        finite = torch.isfinite(x).all()
        uplink = uplink._replace(
            vectors={**uplink.vectors, name: torch.where(finite, sent.row.to(x.dtype), x)},
            metrics={**uplink.metrics, NBYTES + name: nbytes},
            memory={**uplink.memory, **{mine + key: value for key, value in {**sent.kept, **after}.items()}},
        )
        if not self.spoken:
            return uplink
        whole = ~finite if sent.whole is None else ~finite | sent.whole
        return uplink._replace(said={**uplink.said, name: Said(said[-1], whole, x)})

    def _read(
        self, problem: Problem, numel: int, said: Tensor, whole: bool, held: Named, down: Named
    ) -> tuple[Tensor, Named]:
        """The row that a client's message stands for, and what is kept of that client now."""
        shared, error = down.get(f"{PREFIX}shared"), self.codec.error(numel)
        read = self.feedback.read(said.to(problem.dtype), held, whole, shared=shared, error=error)
        return read.row.to(problem.dtype), _cast(read.held, problem)


def _cast(kept: Named, problem: Problem) -> Named:
    """Floats in the run's dtype."""
    return {name: value.to(problem.dtype) if value.is_floating_point() else value for name, value in kept.items()}


def bare(strategy: Strategy) -> Strategy:
    """The strategy itself, without its compression and its surveys."""
    while hasattr(strategy, "inner"):
        strategy = strategy.inner
    return strategy
