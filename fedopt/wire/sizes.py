"""The exact length of a message, from the lengths of its bodies and without making it.

Every message of the protocol sets all its fields, so a length is a sum over names and bodies. Lengths of bodies may be
tensors, one entry for each client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.types import Batches

_FIXED32, _FIXED64, _BOOL = 5, 9, 2  # with their tags


class Body(NamedTuple):
    """A vector of a message."""

    codec: str
    entries: int
    nbytes: Tensor
    """Of each client's body, int64."""


def varint(n: Tensor) -> Tensor:
    """Length of n >= 0 as a variable-length integer: 7 bits in each byte."""
    limits = torch.tensor([1 << 7 * i for i in range(1, 9)], dtype=torch.int64)
    return 1 + (n[..., None] >= limits).sum(dim=-1)


def _within(length: Tensor) -> Tensor:
    """A field of that many bytes: its tag, how many they are, and they."""
    return 1 + varint(length) + length


def _text(word: str) -> Tensor:
    return _within(torch.tensor(len(word.encode())))


def vector(name: str, body: Body) -> Tensor:
    """A `Vector`, with its tag."""
    entries = 1 + varint(torch.tensor(body.entries))
    return _within(_text(name) + _text(body.codec) + entries + _within(body.nbytes))


def number(name: str) -> Tensor:
    """A `Number`, with its tag."""
    return _within(_text(name) + _FIXED64)


def down(program: str, vectors: Mapping[str, Body], numbers: Iterable[str], batches: Batches | None) -> Tensor:
    """A `Down`."""
    walk = torch.tensor(0)
    if batches is not None:
        walk = _within(_text(batches.split) + 3 * _FIXED32 + _BOOL)
    head = _FIXED32 + 5 * _FIXED64 + _text(program) + walk
    return _sum(head, vectors, numbers)


def up(vectors: Mapping[str, Body], metrics: Iterable[str]) -> Tensor:
    """An `Up`."""
    return _sum(torch.tensor(_FIXED32 + 3 * _FIXED64), vectors, metrics)


def _sum(head: Tensor, vectors: Mapping[str, Body], numbers: Iterable[str]) -> Tensor:
    for name, body in vectors.items():
        head = head + vector(name, body)
    for name in numbers:
        head = head + number(name)
    return head
