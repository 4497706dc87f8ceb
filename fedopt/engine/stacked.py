"""The stacked executor: many clients as one program under `torch.func.vmap`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from fedopt import keys, models
from fedopt.engine.cohort import Cohort, Walk, assemble, walk
from fedopt.engine.collect import Part, gather, merge
from fedopt.engine.serial import Serial
from fedopt.problem import Problem
from fedopt.types import Carry, Client, Exchange, Named, Programs, Replies, Uplink

log = logging.getLogger(__name__)

_WALK_BYTES = 64  # per sample walked over: its place, its mask, and what drawing them takes in between

_CLIENTS = Client(down=None, own=0, memory=0, key=0, samples=0)  # type: ignore[arg-type]


class Stacked:
    """Runs a cohort in micro-cohorts of clients with alike numbers of steps; what cannot be stacked runs serially.

    A micro-cohort is as wide as `memory_mb` allows. Its clients are ordered by their number of steps, the longest
    first, so that those who are done are always at the end and are cut off; ragged batches are padded and masked.
    """

    name = "stacked"

    def __init__(self, memory_mb: float = 1024.0) -> None:
        self.memory_mb = memory_mb
        self.width: dict[str, int] = {}
        """Clients per micro-cohort, by program; measured once and kept with the run."""
        self.refused: dict[str, str] = {}
        """Programs that run serially, with the reason."""
        self._serial = Serial()

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        if exchange.clients.numel() == 0:
            return merge(exchange, [])
        name, known = exchange.program, set(self.refused)
        if name not in self.refused and exchange.batches is not None:
            reason = models.stackable(problem.network.training)
            if reason is not None:
                self._refuse(name, reason)
        if name not in self.refused:
            cohort = assemble(problem, exchange, memory, key)
            try:
                return merge(exchange, self.parts(problem, programs, exchange, cohort, self.pieces(cohort)))
            except Exception as error:  # anything may refuse to stack; the serial run names a real mistake
                self._refuse(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        try:
            return self._serial.map(problem, programs, exchange, memory, key)
        except Exception:
            if name not in known:
                del self.refused[name]  # a mistake in the program, not something that will not stack
            raise

    def plan(self) -> dict[str, Any]:
        """Widths and refusals: a resumed run takes these over and does not measure again."""
        return {"width": dict(self.width), "refused": dict(self.refused)}

    def restore(self, plan: dict[str, Any]) -> None:
        self.width.update(plan.get("width", {}))
        self.refused.update(plan.get("refused", {}))

    def close(self) -> None:
        """Nothing to end."""

    def _refuse(self, program: str, reason: str) -> None:
        self.refused[program] = reason
        log.warning("program '%s' runs one client at a time: it cannot be stacked (%s)", program, reason)

    def pieces(self, cohort: Cohort, workers: int = 1) -> list[Tensor]:
        """The rows for each of `workers`, longest walks first, dealt out so that all have about as much to do."""
        order = torch.argsort(cohort.samples, descending=True, stable=True)
        return [piece for piece in (order[first::workers] for first in range(workers)) if piece.numel()]

    def parts(
        self,
        problem: Problem,
        programs: Programs,
        exchange: Exchange,
        cohort: Cohort,
        pieces: Sequence[Tensor],
    ) -> Iterator[Part]:
        """The answers, piece by piece; a piece is a lane."""
        for lane, rows in enumerate(pieces):
            yield gather(exchange, self._blocks(problem, programs, exchange, cohort, lane, rows))

    def _blocks(
        self, problem: Problem, programs: Programs, exchange: Exchange, cohort: Cohort, lane: int, order: Tensor
    ) -> Iterator[tuple[int, Tensor, Uplink]]:
        if exchange.program not in self.width:
            self.width[exchange.program] = self._measure(problem, exchange, cohort)
        first = 0
        while first < order.numel():
            # a micro-cohort is padded to its first, longest walk: beside clients with much data there are few others
            longest = int(cohort.samples[order[first]]) * max(1, exchange.batches.epochs if exchange.batches else 1)
            fitting = max(1, int(self.memory_mb * 2**20 / (_WALK_BYTES * max(longest, 1))))
            where = order[first : first + min(self.width[exchange.program], fitting)]
            first += where.numel()
            some = cohort.take(where)
            with torch.no_grad():
                yield lane, where, _run(programs, exchange, some, walk(problem, exchange, some))

    def _measure(self, problem: Problem, exchange: Exchange, cohort: Cohort) -> int:
        vectors = 8 * problem.d * problem.dtype.itemsize  # model, gradient, optimizer, delta, and temporaries of each
        memory = sum(rows[0].numel() * rows.element_size() for rows in cohort.memory.values() if rows.shape[0])
        each = vectors + 3 * memory + _activations(problem, exchange, cohort)
        return max(1, int(self.memory_mb * 2**20 / each))


def _run(programs: Programs, exchange: Exchange, cohort: Cohort, batches: Walk | None) -> Uplink:
    program = programs.work[exchange.program]
    client = cohort.stacked()
    carry = vmap(program.start, in_dims=(_CLIENTS,))(client)
    done: list[Carry] = []
    if batches is not None:
        step = vmap(program.step, in_dims=(_CLIENTS, 0, 0))
        active = batches.steps.numel()
        taken = torch.arange(int(batches.steps.max()))
        alive = (batches.steps > taken[:, None]).sum(dim=1).tolist()  # the longest walks come first
        for number, still in enumerate(alive):
            if still < active:
                done.append(pytree.tree_map(lambda leaf: leaf[still:active], carry))  # noqa: B023 - used at once
                carry = pytree.tree_map(lambda leaf: leaf[:still], carry)  # noqa: B023
                client = cohort.take(slice(0, still)).stacked()
                active = still
            carry = step(client, carry, batches.batch(number, slice(0, active)))
    if done:
        carry = pytree.tree_map(lambda *leaves: torch.cat(leaves), carry, *reversed(done))
    uplink: Uplink = vmap(program.finish, in_dims=(_CLIENTS, 0))(cohort.stacked(), carry)
    return uplink


def _activations(problem: Problem, exchange: Exchange, cohort: Cohort) -> int:
    """Bytes that one client's forward pass over a batch keeps for the backward pass."""
    batches = walk(problem, exchange, cohort.take(torch.argmax(cohort.samples)[None]))
    if batches is None:
        return 0
    batch = batches.batch(0, slice(0, 1))
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    params, buffers = problem.unpack(problem.initial)
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        one = {name: value[0] for name, value in batch.items()}
        problem.objective(params, buffers, one, keys.root(0))
    return 2 * sum(seen.values())  # as much again for the gradients that flow back
