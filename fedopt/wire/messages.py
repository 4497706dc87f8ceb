"""Messages of an exchange: written, and read without trust.

A reader knows what it waits for: which exchange, whose answer, which vectors of how many entries under which codec. A
message that is longer than such a one can be, or says anything else, is refused with a WireError before anything is
made of it. Nothing is unpickled, and nothing is allocated for what a message claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from fedopt.types import Batches, Codec, WireError
from fedopt.wire.payload_pb2 import Batches as Walk
from fedopt.wire.payload_pb2 import Down, Number, Up, Vector

VERSION = 1

NAME = 200
"""Largest number of bytes in a name."""
SLACK = 1 << 16
"""Beyond its bodies, a message has this many bytes at the most."""
DENSE = 16
"""A body has this many bytes for an entry at the most, and `SLACK` more: codecs write less than floats do, or little
more."""

Numbers = Mapping[str, float | int]


class Written(NamedTuple):
    """A vector as it is sent."""

    codec: str
    entries: int
    body: bytes


class Awaited(NamedTuple):
    """A vector as a reader waits for it."""

    entries: int
    codec: Codec | None = None
    """None: floats as they stand."""
    dtype: torch.dtype = torch.float32
    """Of these floats."""


class Task(NamedTuple):
    """What a server says to a client."""

    exchange: int
    client: int
    key: int
    program: str
    vectors: dict[str, Tensor]
    numbers: dict[str, float | int]
    batches: Batches | None


class Answer(NamedTuple):
    """What a client says to a server."""

    exchange: int
    client: int
    vectors: dict[str, Tensor]
    metrics: dict[str, float | int]
    weight: float


def plain(vector: Tensor) -> Written:
    """A vector of floats as it stands."""
    words = {4: torch.int32, 8: torch.int64}[vector.element_size()]
    flat = vector.detach().cpu().contiguous().flatten()
    return Written("", flat.numel(), flat.view(words).numpy().astype(f"<i{vector.element_size()}").tobytes())


def write_down(
    exchange: int,
    client: int,
    key: int,
    program: str,
    vectors: Mapping[str, Written],
    numbers: Numbers,
    batches: Batches | None = None,
) -> bytes:
    """A server's message to a client."""
    found = Down(
        version=VERSION,
        exchange=exchange,
        client=client,
        key=key,
        program=program,
        vectors=_vectors(vectors),
        numbers=_numbers(numbers),
    )
    if batches is not None:
        found.batches.CopyFrom(
            Walk(
                split=batches.split,
                size=batches.size or 0,
                epochs=batches.epochs,
                steps=batches.steps or 0,
                shuffle=batches.shuffle,
            )
        )
    message: bytes = found.SerializeToString(deterministic=True)
    return message


def write_up(exchange: int, client: int, vectors: Mapping[str, Written], metrics: Numbers, weight: float) -> bytes:
    """A client's message to the server."""
    message: bytes = Up(
        version=VERSION,
        exchange=exchange,
        client=client,
        vectors=_vectors(vectors),
        metrics=_numbers(metrics),
        weight=weight,
    ).SerializeToString(deterministic=True)
    return message


def read_down(message: bytes, client: int, vectors: Mapping[str, Awaited]) -> Task:
    """What the server asks of this client. Raises WireError."""
    found = Down()
    _parse(message, found, vectors)
    if found.client != client:
        raise WireError(f"a message to client {client} is needed, one to client {found.client} was given")
    _name(found.program)
    read, numbers = _read(found.vectors, vectors), _whole(found.numbers)
    return Task(found.exchange, client, found.key, found.program, read, numbers, _walk(found))


def read_up(message: bytes, exchange: int, client: int, vectors: Mapping[str, Awaited]) -> Answer:
    """This client's answer in this exchange. Raises WireError."""
    found = Up()
    _parse(message, found, vectors)
    if (found.exchange, found.client) != (exchange, client):
        raise WireError(
            f"the answer of client {client} in exchange {exchange} is needed, that of client {found.client} in exchange"
            f" {found.exchange} was given"
        )
    if not (math.isfinite(found.weight) and found.weight >= 0):
        raise WireError(f"a weight >= 0 is needed, {found.weight} was given")
    return Answer(exchange, client, _read(found.vectors, vectors), _whole(found.metrics), found.weight)


def _vectors(vectors: Mapping[str, Written]) -> list[Vector]:
    return [
        Vector(name=name, codec=vector.codec, entries=vector.entries, body=vector.body)
        for name, vector in vectors.items()
    ]


def _numbers(numbers: Numbers) -> list[Number]:
    return [
        Number(name=name, whole=value) if isinstance(value, int) else Number(name=name, real=value)
        for name, value in numbers.items()
    ]


def _parse(message: bytes, into: Down | Up, vectors: Mapping[str, Awaited]) -> None:
    most = sum(DENSE * vector.entries + SLACK for vector in vectors.values()) + SLACK
    if len(message) > most:
        raise WireError(f"a message of {most} bytes at the most is needed, one of {len(message)} was given")
    try:
        into.ParseFromString(message)
    except DecodeError as error:
        raise WireError(f"this is no message of the protocol: {error}") from None
    if into.version != VERSION:
        raise WireError(f"version {VERSION} of the protocol is needed, {into.version} was given: update the other end")


def _read(found: object, wanted: Mapping[str, Awaited]) -> dict[str, Tensor]:
    """The vectors of a message, each once and none but those wanted."""
    given: list[Vector] = list(found)  # type: ignore[call-overload]
    if len(given) > len(wanted):
        raise WireError(f"{len(wanted)} vectors are needed, {len(given)} were given")
    read: dict[str, Tensor] = {}
    for vector in given:
        _name(vector.name)
        if vector.name in read or vector.name not in wanted:
            raise WireError(f"vectors {', '.join(wanted) or 'none'} are needed once each, '{vector.name}' was given")
        awaited = wanted[vector.name]
        codec = "" if awaited.codec is None else awaited.codec.name
        if (vector.codec, vector.entries) != (codec, awaited.entries):
            raise WireError(
                f"vector '{vector.name}' with {awaited.entries} entries"
                f"{f' by codec {codec!r}' if codec else ' as they stand'} is needed, one with {vector.entries} by codec"
                f" '{vector.codec[:NAME]}' was given; do both ends have the same model and the same [compression]?"
            )
        read[vector.name] = _decoded(vector.body, awaited)
    if missing := wanted.keys() - read.keys():
        raise WireError(f"vector '{min(missing)}' is needed and was not given")
    return read


def _decoded(body: bytes, awaited: Awaited) -> Tensor:
    if awaited.codec is not None:
        return awaited.codec.decode(body, awaited.entries)
    size = awaited.dtype.itemsize
    if len(body) != size * awaited.entries:
        raise WireError(f"{size * awaited.entries} bytes are needed for {awaited.entries} entries, {len(body)} given")
    # a copy, because the bytes are read-only
    return torch.from_numpy(np.frombuffer(body, dtype=f"<i{size}").astype(f"=i{size}")).view(awaited.dtype)


def _whole(found: object) -> dict[str, float | int]:
    numbers: list[Number] = list(found)  # type: ignore[call-overload]
    read: dict[str, float | int] = {}
    for number in numbers:
        _name(number.name)
        if number.name in read:
            raise WireError(f"number '{number.name}' was given twice")
        which = number.WhichOneof("value")
        if which is None:
            raise WireError(f"number '{number.name}' was given without a value")
        read[number.name] = number.real if which == "real" else number.whole
    return read


def _walk(found: Down) -> Batches | None:
    if not found.HasField("batches"):
        return None
    walk = found.batches
    _name(walk.split)
    if walk.epochs < 1:
        raise WireError("batches of one epoch or more are needed, 0 epochs were given")
    return Batches(walk.split, walk.size or None, walk.epochs, walk.steps or None, walk.shuffle)


def _name(name: str) -> None:
    if not name or len(name.encode()) > NAME:
        raise WireError(f"a name of 1 to {NAME} bytes is needed, one of {len(name.encode())} was given")
