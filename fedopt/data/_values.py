"""The values of the data room: samples, shards of them, and everybody's data as the engine reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Samples held in one place: `x [S, ...]`, `y [S, ...]`."""

    x: Tensor
    y: Tensor


class Dataset(NamedTuple):
    """What a source returns.

    `groups [S]` numbers the natural owner of each sample (a patient, a speaker) and `group_names` names them; None
    where the data has no natural owners. `test` is a test set that comes with the data (its publisher's, or held-out
    groups); without one, a share of the samples is held out by `federate`.
    """

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    test: Split | None = None
    task: str = "classification"
    """`classification` (y: class indices), `regression` (y: floats)."""
    vocabulary: int | None = None
    """Number of different tokens where x holds token ids."""


class Parts(NamedTuple):
    """What a partition gives: the samples of all clients one after another, `index [S']`, and `sizes [N]`, both int64.

    Client i holds the `sizes[i]` entries of `index` that follow those of the clients before him.
    """

    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name
    sizes: Tensor

    @classmethod
    def of(cls, samples: Sequence[Tensor]) -> Parts:
        """From the samples of each client."""
        return cls(torch.cat(list(samples)), torch.tensor([len(own) for own in samples], dtype=torch.int64))

    def each(self) -> tuple[Tensor, ...]:
        """The samples of each client: a tensor per client, so for few clients."""
        parts: tuple[Tensor, ...] = self.index.split(self.sizes.tolist())
        return parts


class Shards(NamedTuple):
    """One split of all clients' data without a copy per client.

    The samples of client c are at positions `offsets[c] : offsets[c + 1]`; the sample at position p has features
    `x[index[p]]` and label `y[p]`. Labels stand by position and not by sample, so that a client may hold other labels
    than the source (poisoned ones) for the same features.
    """

    x: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple has a method of this name
    y: Tensor
    offsets: Tensor

    @property
    def clients(self) -> int:
        return self.offsets.numel() - 1

    @property
    def sizes(self) -> Tensor:
        """Samples per client `[N]`."""
        return self.offsets[1:] - self.offsets[:-1]

    def held(self, clients: Tensor) -> Tensor:
        """Samples of these clients `[n]`; costs nothing for the others."""
        return self.offsets[clients + 1] - self.offsets[clients]


class Federation(NamedTuple):
    """Everybody's data: the clients' splits by name (`train`, `valid`), the server's splits (`test`, `trial`).

    `client_names` are those of natural owners; empty where clients have a number and no more.
    """

    splits: dict[str, Shards]
    server: dict[str, Split]
    class_names: tuple[str, ...]
    client_names: tuple[str, ...] = ()
    task: str = "classification"
    vocabulary: int | None = None

    @property
    def clients(self) -> int:
        return self.splits["train"].clients

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return tuple(self.splits["train"].x.shape[1:])

    @property
    def classes(self) -> int:
        return len(self.class_names)

    def name(self, client: int) -> str:
        """What people call a client: his owner's name, or `client 7`."""
        return self.client_names[client] if self.client_names else f"client {client}"
