"""The serial executor: one client after another, in this process, eagerly. The one to debug with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.engine.cohort import Cohort, assemble, walk
from fedopt.engine.collect import Part, each, gather, lanes, merge
from fedopt.problem import Problem
from fedopt.types import Exchange, FedoptError, Named, Programs, Replies, Uplink


class ClientError(FedoptError):
    """A client's program raised; says which client, exchange, program and stage. The cause is chained."""

    def __init__(self, name: str, client: int, program: str, stage: str, cause: Exception) -> None:
        super().__init__(
            f"client {client} ({name}) failed in program '{program}' at {stage}: {type(cause).__name__}: {cause}"
        )
        self.client = client
        self.program = program
        self.stage = stage
        self.exchange: int | None = None
        """Set by the loop, which counts."""

    def __str__(self) -> str:
        where = "" if self.exchange is None else f"exchange {self.exchange}: "
        return where + super().__str__()


class Serial:
    """Runs each client's `start`, `step` ... `step`, `finish` in turn; breakpoints in them work."""

    name = "serial"
    warming = False

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        cohort = assemble(problem, exchange, memory, key)
        return merge(exchange, self.parts(problem, programs, exchange, cohort, self.pieces(cohort)))

    def pieces(self, cohort: Cohort, workers: int = 1) -> list[Tensor]:
        """The rows of each lane, as the work may be cut: the same lanes for any number of workers."""
        return [torch.arange(lane.start, lane.stop) for lane in lanes(cohort.clients.numel())]

    def parts(
        self,
        problem: Problem,
        programs: Programs,
        exchange: Exchange,
        cohort: Cohort,
        pieces: Sequence[Tensor],
    ) -> Iterator[Part]:
        """The answers, lane by lane."""
        for lane, rows in enumerate(pieces):
            yield gather(exchange, self._clients(problem, programs, exchange, cohort, lane, rows))

    def _clients(
        self, problem: Problem, programs: Programs, exchange: Exchange, cohort: Cohort, lane: int, rows: Tensor
    ) -> Iterator[tuple[int, Tensor, Uplink]]:
        for row in rows.split(1):
            uplink = run_client(problem, programs, exchange, cohort.take(row))
            yield lane, row, each(uplink, lambda leaf: leaf[None])

    def plan(self) -> dict[str, Any]:
        """What a resumed run has to know: nothing."""
        return {}

    def restore(self, plan: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing to end."""


def run_client(problem: Problem, programs: Programs, exchange: Exchange, cohort: Cohort) -> Uplink:
    """The whole work of the only client of `cohort`."""
    client, number = cohort.one(0), int(cohort.clients[0])
    program = programs.work[exchange.program]
    stage = "start"
    try:
        # what a module draws from torch's own generator is the client's too
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which looks for every accelerator at each call
            torch.default_generator.manual_seed(keys.to_seed(keys.fold(client.key, "torch")))
            carry = program.start(client)
            batches = walk(problem, exchange, cohort)
            for step in range(int(batches.steps[0]) if batches is not None else 0):
                stage = f"step {step}"
                assert batches is not None
                carry = program.step(client, carry, batches.single(step))
            stage = "finish"
            return program.finish(client, carry)
    except FedoptError:
        raise
    except Exception as error:
        raise ClientError(problem.data.name(number), number, exchange.program, stage, error) from error
