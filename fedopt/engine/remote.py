"""The executor of clients that are somewhere else: messages out, messages in, and replies like those of `serial`.

It knows neither Flower nor gRPC. A `Carrier` brings a message to each client and comes back with what they say; the
clients' half is `fedopt.engine.resident`.

The clients keep their memory themselves. What the server keeps of each is the exchange after which its memory is to be
taken, and what their codecs' feedbacks need to read the next message; both are rows of the run's client memory, so they
are committed and checkpointed with everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedopt import keys
from fedopt.compressed import NBYTES
from fedopt.engine.collect import gather, lanes, merge
from fedopt.engine.memory import ClientMemory
from fedopt.engine.resident import numbers
from fedopt.engine.versions import NONE
from fedopt.problem import Problem
from fedopt.types import (
    Client,
    Exchange,
    FedoptError,
    Info,
    Named,
    Programs,
    Rejection,
    Replies,
    Silence,
    State,
    Strategy,
    Uplink,
    WireError,
)
from fedopt.wire.messages import Answer, Awaited, longest, plain, read_up, write_down

VERSION = "version"
"""Of what the server keeps of a client: the exchange after which its memory is taken."""

HELD = "held."
"""Prefix of what it keeps for a codec's feedback."""

_WORDS = 1 << 64


class Carrier(Protocol):
    """A way to the clients."""

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        """For each client once, as they come: its answer to `message(i)`, i its place among `clients`, or why not.

        `number` is that of the exchange. A message is made when it is sent, and once more where it has to be sent
        again. `limit` is the longest answer in bytes; a longer one is not taken in.
        """
        ...


@dataclass(frozen=True)
class Elsewhere:
    """A strategy whose clients keep their memory themselves, for a `Remote` executor."""

    inner: Strategy

    def programs(self, problem: Problem) -> Programs:
        programs = self.inner.programs(problem)
        held = {
            f"{HELD}{vector}.{name}": value
            for vector, hearing in programs.coded.items()
            for name, value in hearing.held.items()
        }
        return programs._replace(memory={VERSION: torch.tensor(NONE), **held}, home=programs.memory)

    def init(self, problem: Problem, key: Tensor) -> State:
        return self.inner.init(problem, key)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        return self.inner.plan(problem, state, key)

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        return self.inner.absorb(problem, state, replies, key)

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state)


class Remote:
    """Asks clients by way of a carrier; runs the programs of a strategy that is `Elsewhere`.

    Under `reduce = "mean"` the mean is formed in the order of those who answered, as if nobody else had been asked, so
    the replies have the bits of the serial executor over these clients.

    least: answers without which an exchange fails.
    """

    name = "remote"

    def __init__(self, carrier: Carrier, least: int = 1) -> None:
        self.carrier, self.least = carrier, least
        self._settled: Tensor | None = None
        self._awaited: tuple[Programs, dict[tuple[str, ...], Uplink]] | None = None

    def settled(self, memory: ClientMemory) -> None:
        """Clients keep what the checkpoint on disk starts from."""
        self._settled = memory.of(torch.arange(memory.slot.numel()))[VERSION]

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        asked = exchange.clients.tolist()
        if not asked:
            return merge(exchange, [])
        shape = self._shape(problem, programs, exchange)
        awaited = self._vectors(programs, shape)
        number = int(key) % _WORDS
        message = self._message(problem, exchange, memory, key)
        heard: dict[int, Uplink] = {}
        rejected: list[Rejection] = []
        silent: list[Rejection] = []
        for client, said in self.carrier.ask(number, asked, message, longest(awaited)):
            if isinstance(said, Silence):
                silent.append(Rejection(client, said.reason))
                continue
            try:
                answer = read_up(said, number, client, awaited)
                if answer.refused:
                    raise WireError(answer.refused)
                row = asked.index(client)
                heard[row] = self._uplink(problem, programs, exchange, memory, row, answer, shape, key)
            except WireError as error:
                rejected.append(Rejection(client, str(error)))
        if len(heard) < min(self.least, len(asked)):
            raise FedoptError(
                f"{self.least} answers are needed, {len(heard)} of {len(asked)} clients gave one"
                f" ({_first(rejected + silent)}); lower deploy.least, or look at the clients"
            )
        replies = self._merged(exchange, heard)
        return replies._replace(
            exchange=exchange,
            rejected=tuple(sorted((*replies.rejected, *rejected))),
            silent=tuple(sorted(silent)),
        )

    def plan(self) -> dict[str, Any]:
        """What a resumed run has to know: nothing."""
        return {}

    def restore(self, plan: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing to end: whoever made the carrier ends it."""

    def _message(self, problem: Problem, exchange: Exchange, memory: Named, key: Tensor) -> Callable[[int], bytes]:
        """What each client is sent, by its row."""
        common = {name: _sendable(name, value, problem) for name, value in exchange.down.items()}
        shared = {name: plain(value) for name, value in common.items() if value.dim()}
        for name, value in exchange.own.items():
            _sendable(name, value[0], problem)
        whole = int(key)

        def message(row: int) -> bytes:
            client = int(exchange.clients[row])
            own = {name: value[row] for name, value in exchange.own.items()}
            vectors = {**shared, **{name: plain(value) for name, value in own.items() if value.dim()}}
            told = {name: value.item() for name, value in {**common, **own}.items() if not value.dim()}
            settled = NONE if self._settled is None else int(self._settled[client])
            return write_down(
                whole % _WORDS,
                client,
                whole,
                exchange.program,
                vectors,
                told,
                exchange.batches,
                int(memory[VERSION][row]) % _WORDS,
                settled % _WORDS,
            )

        return message

    def _shape(self, problem: Problem, programs: Programs, exchange: Exchange) -> Uplink:
        """An answer as the program makes it, of a client without data: which vectors, which numbers, which memory."""
        if self._awaited is None or self._awaited[0] is not programs:
            self._awaited = programs, {}
        known = self._awaited[1]
        program = exchange.program, *exchange.down, *exchange.own
        if program not in known:
            down = dict(exchange.down)
            own = {name: value[0] for name, value in exchange.own.items()}
            client = Client(down, own, programs.home or {}, keys.root(0), torch.tensor(0))
            work = programs.work[exchange.program]
            with torch.no_grad():
                known[program] = work.finish(client, work.start(client))
        return known[program]

    def _vectors(self, programs: Programs, shape: Uplink) -> dict[str, Awaited]:
        awaited = {}
        for name, value in shape.vectors.items():
            hearing = programs.coded.get(name)
            codec = None if hearing is None else hearing.codec
            awaited[name] = Awaited(value.numel(), codec, value.dtype, whole=codec is not None)
        return awaited

    def _uplink(
        self,
        problem: Problem,
        programs: Programs,
        exchange: Exchange,
        memory: Named,
        row: int,
        answer: Answer,
        shape: Uplink,
        key: Tensor,
    ) -> Uplink:
        """A client's answer as the serial executor would have had it. Raises WireError."""
        metrics = {**shape.metrics, **{NBYTES + name: torch.tensor(0) for name in programs.coded}}
        said = numbers(answer.metrics, problem.dtype)
        said |= {NBYTES + name: torch.tensor(n) for name, n in answer.lengths.items() if name in programs.coded}
        wanted = {
            n: v for n, v in metrics.items() if not n.startswith(NBYTES) or n.removeprefix(NBYTES) in shape.vectors
        }
        wrong = said.keys() ^ wanted.keys()
        if wrong or any(said[name].dtype != value.dtype for name, value in wanted.items()):
            raise WireError(f"the numbers {', '.join(wanted)} are needed, {', '.join(said)} were given")
        vectors, kept = dict(answer.vectors), {}
        if shape.memory:
            kept[VERSION] = key
        for name, hearing in programs.coded.items():
            if name in vectors:
                held = {n: memory[f"{HELD}{name}.{n}"][row] for n in hearing.held}
                down = {**exchange.down, **{n: value[row] for n, value in exchange.own.items()}}
                vectors[name], now = hearing.read(vectors[name], name in answer.whole, held, down)
                kept |= {f"{HELD}{name}.{n}": value for n, value in now.items()}
        weight = torch.tensor(answer.weight, dtype=shape.weight.dtype)
        return Uplink({name: vectors[name] for name in shape.vectors}, {n: said[n] for n in wanted}, kept, weight)

    def _merged(self, exchange: Exchange, heard: dict[int, Uplink]) -> Replies:
        """Replies of those who were heard, as of an exchange with nobody else."""
        rows = torch.tensor(sorted(heard), dtype=torch.int64)
        own = {name: value[rows] for name, value in exchange.own.items()}
        among = exchange._replace(clients=exchange.clients[rows], own=own)

        def blocks() -> Iterator[tuple[int, Tensor, Uplink]]:
            for lane, here in enumerate(lanes(rows.numel())):
                for row in here:
                    uplink = heard.pop(int(rows[row]))
                    yield lane, torch.tensor([row]), pytree.tree_map(lambda leaf: leaf[None], uplink)

        return merge(among, [gather(among, blocks())] if heard else [])


def _sendable(name: str, value: Tensor, problem: Problem) -> Tensor:
    """What a message can hold: vectors and numbers in the run's dtype, and whole numbers."""
    if value.dim() <= 1 and (value.dtype == problem.dtype or (value.dtype == torch.int64 and not value.dim())):
        return value
    raise FedoptError(
        f"vectors and numbers of {problem.dtype} and whole numbers can be sent; '{name}' is {list(value.shape)} of"
        f" {value.dtype}"
    )


def _first(rejections: list[Rejection]) -> str:
    if not rejections:
        return "the others were silent"
    first = min(rejections)
    return f"client {first.client}: {first.reason}"
