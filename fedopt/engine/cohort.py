"""The clients of one exchange as tensors: what each sees, and the batches it walks over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fedopt import keys
from fedopt.data import Shards, draw
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Batch, Client, Exchange, Named


class Cohort(NamedTuple):
    """All clients of an exchange; every tensor but those of `down` has one row per client."""

    clients: Tensor
    down: Named
    own: Named
    memory: Named
    key: Tensor
    samples: Tensor

    def take(self, rows: Tensor | slice) -> Cohort:
        """Some of the clients, in the order of `rows`."""
        return Cohort(
            self.clients[rows],
            self.down,
            {name: value[rows] for name, value in self.own.items()},
            {name: value[rows] for name, value in self.memory.items()},
            self.key[rows],
            self.samples[rows],
        )

    def to(self, device: torch.device) -> Cohort:
        """The same clients on a device."""
        if device.type == "cpu":
            return self

        def moved(named: Named) -> Named:
            return {name: value.to(device) for name, value in named.items()}

        return Cohort(
            self.clients.to(device),
            moved(self.down),
            moved(self.own),
            moved(self.memory),
            self.key.to(device),
            self.samples.to(device),
        )

    def stacked(self) -> Client:
        """The clients as one `Client` whose own, memory, key and samples have a leading dimension."""
        return Client(self.down, self.own, self.memory, self.key, self.samples)

    def one(self, row: int) -> Client:
        """A single client."""
        return Client(
            self.down,
            {name: value[row] for name, value in self.own.items()},
            {name: value[row] for name, value in self.memory.items()},
            self.key[row],
            self.samples[row],
        )


def assemble(problem: Problem, exchange: Exchange, memory: Named, key: Tensor) -> Cohort:
    """The cohort of an exchange; `memory` has the rows of its clients, `key` is that of the exchange."""
    clients = exchange.clients
    if clients.numel() > 1 and not bool((clients[1:] > clients[:-1]).all()):
        raise ValueError("the clients of an exchange have to be in increasing order, each once")
    samples = torch.zeros_like(clients)
    if exchange.batches is not None:
        samples = split(problem, exchange).held(clients)
    return Cohort(clients, exchange.down, exchange.own, memory, keys.fold(key, "client", clients), samples)


def split(problem: Problem, exchange: Exchange) -> Shards:
    """The split of the clients' data that an exchange walks over."""
    assert exchange.batches is not None
    name = exchange.batches.split
    if name not in problem.data.splits:
        known = ", ".join(problem.data.splits)
        raise ConfigError("data.valid_share", f"clients have no split '{name}' (they have: {known}); set a share > 0")
    return problem.data.splits[name]


PIECES = 4096
"""So many pieces of an index are remembered."""


class Walk(NamedTuple):
    """The batches of a cohort: positions within the whole split `[n, T, B]`, mask `[n, T, B]`, steps `[n]`."""

    shards: Shards
    positions: Tensor
    mask: Tensor
    steps: Tensor
    layout: torch.memory_format

    def to(self, device: torch.device) -> Walk:
        """The same walk over data that lies on a device; the number of steps stays on the CPU, which counts them."""
        if device.type == "cpu":
            return self
        return self._replace(positions=self.positions.to(device), mask=self.mask.to(device))

    def batch(self, step: int, clients: slice) -> Batch:
        """Step `step` of some clients: x `[k, B, ...]`, y `[k, B, ...]`, mask `[k, B]`."""
        positions = self.positions[clients, step]
        return {
            "x": self.shards.x[self.shards.index[positions]],
            "y": self.shards.y[positions],
            "mask": self.mask[clients, step],
        }

    def single(self, step: int) -> Batch:
        """Step `step` of the only client, cut to its real samples."""
        positions = self.positions[0, step][self.mask[0, step]]
        return {
            "x": self.shards.x[self.shards.index[positions]].contiguous(memory_format=self.layout),
            "y": self.shards.y[positions],
            "mask": torch.ones(positions.shape, dtype=torch.bool),
        }


class Whole(NamedTuple):
    """One batch of everything that each client of a cohort holds, where all of it lies in one piece: nothing is copied.

    The samples of client i of k are the rows `first + n i` to `first + n (i + 1)` of `x`, and of `y` from `place` on.
    """

    shards: Shards
    first: int
    place: int
    n: int
    k: int
    layout: torch.memory_format

    @property
    def steps(self) -> Tensor:
        """One for each client."""
        return torch.ones(self.k, dtype=torch.int64)

    def to(self, device: torch.device) -> Whole:
        """The same; what lies on the device are the shards."""
        return self

    def batch(self, step: int, clients: slice) -> Batch:
        """The batch of some clients, the first ones."""
        x, y = self._rows()
        mask = torch.ones(self.k, self.n, dtype=torch.bool, device=x.device)
        every = {"x": x.unflatten(0, (self.k, self.n)), "y": y.unflatten(0, (self.k, self.n)), "mask": mask}
        return {name: value[clients] for name, value in every.items()}

    def single(self, step: int) -> Batch:
        """The batch of the only client."""
        x, y = self._rows()
        mask = torch.ones(self.n, dtype=torch.bool)
        if self.layout != torch.contiguous_format:  # else as it lies, which may be column by column
            x = x.contiguous(memory_format=self.layout)
        return {"x": x, "y": y, "mask": mask}

    def _rows(self) -> tuple[Tensor, Tensor]:
        rows = self.n * self.k
        return self.shards.x[self.first : self.first + rows], self.shards.y[self.place : self.place + rows]


def whole(shards: Shards, cohort: Cohort, layout: torch.memory_format) -> Whole | None:
    """The cohort's data in one piece; None where clients hold different numbers of samples, or some lie elsewhere."""
    n, k, place = int(cohort.samples[0]), cohort.clients.numel(), int(shards.offsets[cohort.clients[0]])
    if n == 0 or not torch.equal(shards.offsets[cohort.clients], place + n * torch.arange(k)):
        return None
    if not bool((cohort.samples == n).all()):
        return None
    first = _first(shards.index, place, place + n * k)
    return None if first is None else Whole(shards, first, place, n, k, layout)


_pieces: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What was found of an index, which nobody writes to, for as long as it is there."""


def _first(index: Tensor, start: int, stop: int) -> int | None:
    """The row at `start`, where the rows up to `stop` are one piece."""
    known: dict[tuple[int, int], int | None] = _pieces.setdefault(index, {})
    if (start, stop) not in known:
        if len(known) >= PIECES:
            known.clear()
        first = int(index[start])
        whole = torch.equal(index[start:stop], torch.arange(first, first + stop - start, device=index.device))
        known[start, stop] = first if whole else None
    return known[start, stop]


def walk(problem: Problem, exchange: Exchange, cohort: Cohort) -> Walk | Whole | None:
    """The batches of these clients; None for programs that need no data, and for exchanges of no step."""
    if exchange.batches is None or exchange.batches.steps == 0:
        return None
    shards = split(problem, exchange)
    _, size, epochs, steps, shuffle = exchange.batches
    if size is None and not shuffle and (epochs if steps is None else steps) == 1:
        there = whole(shards, cohort, problem.layout)
        if there is not None:
            return there
    offsets, mask = draw(cohort.samples, keys.fold(cohort.key, "batches"), size, epochs, steps, shuffle)
    positions = shards.offsets[cohort.clients][:, None, None] + offsets
    return Walk(shards, positions, mask, mask.any(dim=2).sum(dim=1), problem.layout)
