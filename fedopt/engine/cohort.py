"""The clients of one exchange as tensors: what each sees, and the batches it walks over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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


def walk(problem: Problem, exchange: Exchange, cohort: Cohort) -> Walk | None:
    """The batches of these clients; None for programs that need no data, and for exchanges of no step."""
    if exchange.batches is None or exchange.batches.steps == 0:
        return None
    shards = split(problem, exchange)
    _, size, epochs, steps, shuffle = exchange.batches
    offsets, mask = draw(cohort.samples, keys.fold(cohort.key, "batches"), size, epochs, steps, shuffle)
    positions = shards.offsets[cohort.clients][:, None, None] + offsets
    return Walk(shards, positions, mask, mask.any(dim=2).sum(dim=1), problem.layout)
