"""A client where it lives: a server's message in, its own message out."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from fedopt.engine.cohort import assemble
from fedopt.engine.loop import Executor
from fedopt.engine.serial import ClientError, run_client
from fedopt.engine.versions import Versions
from fedopt.problem import Problem
from fedopt.types import Exchange, FedoptError, Named, Programs, Uplink, WireError
from fedopt.wire.messages import Task, Within, Written, longest, plain, read_down, write_refusal, write_up

log = logging.getLogger(__name__)


class Resident:
    """One client with its data and its memory.

    It does in an exchange what the serial executor does for it. Asked again in the same exchange, it gives the same
    answer and works no second time. What it cannot do it refuses in words, and is there for the next exchange.

    programs: the strategy's, of a strategy whose codes are `spoken`. executor: does the work in place of the serial
    executor, on a GPU for example; its answers are those of `serial` to rounding.
    """

    def __init__(
        self,
        problem: Problem,
        programs: Programs,
        client: int,
        versions: Versions | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.problem, self.programs, self.client, self.executor = problem, programs, client, executor
        self.versions = Versions(programs.memory) if versions is None else versions
        self._last: tuple[int, int, bytes] | None = None

    @property
    def within(self) -> Within:
        """The vectors that it takes: none is longer than the model and its buffers, or than the programs say."""
        longest_vector = max(value.numel() for value in self.problem.initial.values())
        return Within(max(longest_vector, self.programs.longest), self.problem.dtype)

    @property
    def limit(self) -> int:
        """Bytes of a message that it reads."""
        return longest(self.within)

    def answer(self, message: bytes) -> bytes:
        """The answer to a message. Raises WireError for one that is not of the protocol, or not for this client."""
        task = read_down(message, self.client, self.within)
        if self._last is not None and self._last[:2] == (task.exchange, task.memory):
            return self._last[2]
        try:
            said = self._answered(task)
        except (FedoptError, MemoryError, torch.OutOfMemoryError) as error:
            log.warning("exchange %016x: refused: %s", task.exchange, error, exc_info=isinstance(error, ClientError))
            return write_refusal(task.exchange, self.client, str(error))
        self._last = (task.exchange, task.memory, said)
        return said

    def _answered(self, task: Task) -> bytes:
        if task.program not in self.programs.work:
            known = ", ".join(self.programs.work)
            raise WireError(
                f"one of the programs {known} is needed, '{task.program}' was given; have both ends one config?"
            )
        # a version that was neither accepted nor stored will not be asked for again
        memory = self.versions.at(task.memory)
        self.versions.trim({task.memory, task.settled})
        uplink = self._work(task, memory)
        if uplink.memory:
            self.versions.put(task.exchange, {**memory, **uplink.memory})
        vectors = {name: self._written(name, uplink) for name in uplink.vectors}
        metrics = {
            name: _number(name, value) for name, value in uplink.metrics.items() if not name.startswith("compression.")
        }
        return write_up(task.exchange, self.client, vectors, metrics, float(uplink.weight))

    def _work(self, task: Task, memory: Named) -> Uplink:
        # what was sent to everybody and what to this client alone come as one
        sent = {**task.vectors, **numbers(task.numbers, self.problem.dtype)}
        own = {name: value[None] for name, value in sent.items()}
        exchange = Exchange(task.program, torch.tensor([self.client]), sent, own, task.batches)
        rows = {name: value[None] for name, value in memory.items()}
        key = torch.tensor(task.key)
        if self.executor is None:
            return run_client(self.problem, self.programs, exchange, assemble(self.problem, exchange, rows, key))
        replies = self.executor.map(self.problem, self.programs, exchange, rows, key)
        if replies.rejected:
            raise FedoptError(replies.rejected[0].reason)
        vectors, metrics, kept = (
            {name: value[0] for name, value in named.items()}
            for named in (replies.vectors, replies.metrics, replies.memory)
        )
        return Uplink(vectors, metrics, kept, replies.weights[0])

    def _written(self, name: str, uplink: Uplink) -> Written:
        said = uplink.said.get(name)
        if said is None:
            return plain(uplink.vectors[name])
        if bool(said.whole):
            return plain(said.vector)
        codec, entries = self.programs.coded[name].codec, said.vector.numel()
        return Written(codec.name, entries, codec.write(said.code, entries))


def numbers(given: Mapping[str, float | int], dtype: torch.dtype) -> Named:
    """Scalars as they were before they were sent."""
    return {n: torch.tensor(v, dtype=torch.int64 if isinstance(v, int) else dtype) for n, v in given.items()}


def _number(name: str, value: Tensor) -> float | int:
    if value.dim():
        raise FedoptError(f"metrics are single numbers; '{name}' has the shape {list(value.shape)}")
    return float(value) if value.is_floating_point() else int(value)
