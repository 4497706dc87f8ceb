"""The stacked executor: many clients as one program under `torch.func.vmap`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from fedopt import keys, models
from fedopt.engine.cohort import Cohort, Walk, Whole, assemble, walk
from fedopt.engine.collect import Part, gather, merge
from fedopt.engine.serial import Serial
from fedopt.engine.trace import Traced
from fedopt.problem import Problem
from fedopt.types import Batch, Carry, Client, ClientProgram, Exchange, Named, Programs, Replies, Uplink

log = logging.getLogger(__name__)

Precision = Literal["full", "bf16"]

_WALK_BYTES = 64  # per sample walked over: its place, its mask, and what drawing them takes in between

_CLIENTS = Client(down=None, own=0, memory=0, key=0, samples=0)  # type: ignore[arg-type]


class Stacked:
    """Runs a cohort in micro-cohorts of clients with alike numbers of steps; what cannot be stacked runs serially.

    A micro-cohort is as wide as `memory_mb` allows. Its clients are ordered by their number of steps, the longest
    first, so that those who are done are always at the end and are cut off; ragged batches are padded and masked.

    memory_mb: bound on the micro-cohorts. device: where clients compute; the server is on the CPU.
    precision: `bf16` runs products in bfloat16 by torch's autocast; parameters and sums stay as they are.
    threads: on the CPU, a cohort is cut into so many lanes that run side by side, each with one thread of torch. What
        is traced runs without Python's lock, the rest in turn.
    """

    name = "stacked"

    def __init__(
        self, memory_mb: float = 1024.0, device: str = "cpu", precision: Precision = "full", threads: int = 1
    ) -> None:
        self.memory_mb = memory_mb
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.width: dict[str, int] = {}
        """Clients per micro-cohort, by program; measured once and kept with the run."""
        self.refused: dict[str, str] = {}
        """Programs that run serially, with the reason."""
        self.lanes = threads if self.device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._serial = Serial()
        self._traced = Traced()
        self._moved: tuple[Problem, Problem] | None = None

    @property
    def warming(self) -> bool:
        """Whether the last exchange ran something eagerly that will be traced if it recurs."""
        return self._traced.warming

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        if exchange.clients.numel() == 0:
            return merge(exchange, [])
        name, known = exchange.program, set(self.refused)
        self._traced.warming = False
        if name not in self.refused and exchange.batches is not None:
            reason = models.stackable(problem.network.training)
            if reason is not None:
                self._refuse(name, reason)
        if name not in self.refused:
            cohort = assemble(problem, exchange, memory, key)
            try:
                pieces = self.pieces(cohort, self.lanes)
                return merge(exchange, self.parts(problem, programs, exchange, cohort, pieces))
            except Exception as error:  # anything may refuse to stack; the serial run names a real mistake
                self._refuse(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        try:
            return self._serial.map(problem, programs, exchange, memory, key)
        except Exception:
            if name not in known:
                del self.refused[name]  # a mistake in the program, not something that will not stack
            raise

    def plan(self) -> dict[str, Any]:
        """Widths, lanes and refusals: a resumed run takes these over and does not measure again."""
        return {"width": dict(self.width), "lanes": self.lanes, "refused": dict(self.refused)}

    def restore(self, plan: dict[str, Any]) -> None:
        self.width.update(plan.get("width", {}))
        self.lanes = plan.get("lanes", self.lanes)
        self.refused.update(plan.get("refused", {}))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

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
        """The answers, piece by piece; a piece is a lane. Several run side by side where there are threads for them."""
        self._traced.warming = False
        there = self._there(problem)
        if exchange.program not in self.width:
            self.width[exchange.program] = self.measure(problem, exchange, cohort)

        def part(lane: int, rows: Tensor) -> Part:
            return gather(exchange, self._blocks(there, programs, exchange, cohort, lane, rows))

        if self.lanes == 1 or len(pieces) == 1:
            for lane, rows in enumerate(pieces):
                yield part(lane, rows)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.lanes, "fedopt", initializer=torch.set_num_threads, initargs=(1,))
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            running = [self._pool.submit(part, lane, rows) for lane, rows in enumerate(pieces)]
            wait(running)  # all of them, also if one fails: whoever takes over must be alone
        finally:
            torch.set_num_threads(before)
        for future in running:
            yield future.result()

    def _blocks(
        self, there: Problem, programs: Programs, exchange: Exchange, cohort: Cohort, lane: int, order: Tensor
    ) -> Iterator[tuple[int, Tensor, Uplink]]:
        first = 0
        while first < order.numel():
            # a micro-cohort is padded to its first, longest walk: beside clients with much data there are few others
            longest = int(cohort.samples[order[first]]) * max(1, exchange.batches.epochs if exchange.batches else 1)
            fitting = max(1, int(self.memory_mb * 2**20 / (_WALK_BYTES * max(longest, 1) * self.lanes)))
            where = order[first : first + min(self.width[exchange.program], fitting)]
            first += where.numel()
            some = cohort.take(where)
            batches = walk(there, exchange, some)
            with torch.no_grad(), self._precision():
                uplinks = self._run(
                    programs.work[exchange.program],
                    some.to(self.device),
                    batches.to(self.device) if batches is not None else None,
                )
            yield lane, where, uplinks

    def _run(self, program: ClientProgram, cohort: Cohort, batches: Walk | Whole | None) -> Uplink:
        """The whole work of a micro-cohort whose longest walks come first."""
        client = cohort.stacked()
        start, step, finish = _stacked(program)
        carry = self._traced((program, "start"), start, client)
        done: list[Carry] = []
        if batches is not None:
            width = active = batches.steps.numel()
            taken = torch.arange(int(batches.steps.max()))
            alive = (batches.steps > taken[:, None]).sum(dim=1).tolist()
            for number, still in enumerate(alive):
                if still < active:  # some are done, and what is computed for their rows from now on is lost
                    done.append(pytree.tree_map(lambda leaf: leaf[still:active].clone(), carry))  # noqa: B023
                    active = still
                if bucket(still) < width:
                    width = bucket(still)
                    carry = pytree.tree_map(lambda leaf: leaf[:width].contiguous(), carry)  # noqa: B023 - used at once
                    client = cohort.take(slice(0, width)).stacked()
                batch = batches.batch(number, slice(0, width))
                if number == 0:
                    carry = self._first(program, client, carry, batch)
                else:
                    carry = self._traced((program, "step"), step, client, carry, batch)
            if done:
                carry = pytree.tree_map(
                    lambda *leaves: torch.cat([leaves[0][:active], *leaves[1:]]), carry, *done[::-1]
                )
        uplink: Uplink = self._traced((program, "finish"), finish, cohort.stacked(), carry)
        return uplink

    def _first(self, program: ClientProgram, client: Client, carry: Carry, batch: Batch) -> Carry:
        """The first step. What is still the same for all clients, as the model sent, makes one product for all."""
        leaves, tree = pytree.tree_flatten(carry)
        same = tuple(leaf.shape[0] > 1 and leaf.stride(0) == 0 for leaf in leaves)
        carry = tree.unflatten([leaf[0] if one else leaf for leaf, one in zip(leaves, same, strict=True)])
        return self._traced((program, "first", same), _step(program, tree, same), client, carry, batch)

    def measure(self, problem: Problem, exchange: Exchange, cohort: Cohort) -> int:
        """How many clients a micro-cohort of each lane may have; the same for the same model and data."""
        vectors = 8 * problem.d * problem.dtype.itemsize  # model, gradient, optimizer, delta, and temporaries of each
        memory = sum(rows[0].numel() * rows.element_size() for rows in cohort.memory.values() if rows.shape[0])
        each = vectors + 3 * memory + _activations(problem, exchange, cohort)
        return max(1, int(self.memory_mb * 2**20 / self.lanes / each))

    def _there(self, problem: Problem) -> Problem:
        """The problem on the device."""
        if self._moved is None or self._moved[0] is not problem:
            self._moved = problem, problem.to(self.device)
        return self._moved[1]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()


@functools.lru_cache(maxsize=16)
def _stacked(program: ClientProgram) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return (
        vmap(program.start, in_dims=(_CLIENTS,)),
        vmap(program.step, in_dims=(_CLIENTS, 0, 0)),
        vmap(program.finish, in_dims=(_CLIENTS, 0)),
    )


@functools.lru_cache(maxsize=16)
def _step(program: ClientProgram, tree: pytree.TreeSpec, same: tuple[bool, ...]) -> Callable[..., Any]:
    """A step in which the leaves of the carry that are the `same` for all clients have no dimension for them."""
    return vmap(program.step, in_dims=(_CLIENTS, tree.unflatten([None if one else 0 for one in same]), 0))


def bucket(n: int) -> int:
    """The width at which n clients go on when others are done: four widths per octave, so that shapes recur."""
    if n <= 4:
        return n
    grain = 1 << ((n - 1).bit_length() - 3)
    return -(-n // grain) * grain


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
