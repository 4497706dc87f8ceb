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
REASON = 2000
"""Largest number of bytes in a reason."""
MANY = 64
"""Vectors in a message, where their names are not known beforehand."""
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
    whole: bool = False
    """It may come as it stands, in place of its code."""


class Within(NamedTuple):
    """Vectors by any name, as they stand: what a client waits for, who trusts its server and not its own memory."""

    entries: int
    """Of a vector at the most."""
    dtype: torch.dtype = torch.float32


class Task(NamedTuple):
    """What a server says to a client."""

    exchange: int
    client: int
    key: int
    program: str
    vectors: dict[str, Tensor]
    numbers: dict[str, float | int]
    batches: Batches | None
    memory: int
    settled: int


class Answer(NamedTuple):
    """What a client says to a server."""

    exchange: int
    client: int
    vectors: dict[str, Tensor]
    metrics: dict[str, float | int]
    weight: float
    lengths: Mapping[str, int] = {}
    """Bytes of the bodies of vectors."""
    whole: frozenset[str] = frozenset()
    """Vectors that a codec is awaited for, and that came as they stand."""
    refused: str = ""


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
    memory: int = 0,
    settled: int = 0,
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
        memory=memory,
        settled=settled,
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


def write_refusal(exchange: int, client: int, reason: str) -> bytes:
    """What a client says that has no answer."""
    cut = reason.encode()[:REASON].decode(errors="ignore")
    message: bytes = Up(version=VERSION, exchange=exchange, client=client, weight=0.0, refused=cut).SerializeToString(
        deterministic=True
    )
    return message


def read_down(message: bytes, client: int, vectors: Mapping[str, Awaited] | Within) -> Task:
    """What the server asks of this client. Raises WireError."""
    found = Down()
    _parse(message, found, vectors)
    if found.client != client:
        raise WireError(f"a message to client {client} is needed, one to client {found.client} was given")
    _name(found.program)
    read, numbers = _read(found.vectors, _named(found.vectors, vectors)), _whole(found.numbers)
    asked = Task(
        found.exchange, client, found.key, found.program, read, numbers, _walk(found), found.memory, found.settled
    )
    return asked


def read_up(message: bytes, exchange: int, client: int, vectors: Mapping[str, Awaited]) -> Answer:
    """This client's answer in this exchange. Raises WireError."""
    found = Up()
    _parse(message, found, vectors)
    if (found.exchange, found.client) != (exchange, client):
        raise WireError(
            f"the answer of client {client} in exchange {exchange} is needed, that of client {found.client} in exchange"
            f" {found.exchange} was given"
        )
    if found.refused:
        return Answer(exchange, client, {}, {}, 0.0, refused=found.refused[:REASON])
    if not (math.isfinite(found.weight) and found.weight >= 0):
        raise WireError(f"a weight >= 0 is needed, {found.weight} was given")
    given: list[Vector] = list(found.vectors)
    read = _read(given, vectors)
    lengths = {vector.name: len(vector.body) for vector in given}
    whole = frozenset(v.name for v in given if vectors[v.name].codec is not None and not v.codec)
    return Answer(exchange, client, read, _whole(found.metrics), found.weight, lengths, whole)


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


def longest(vectors: Mapping[str, Awaited] | Within) -> int:
    """Bytes that a message with these vectors may have."""
    if isinstance(vectors, Within):
        return MANY * (vectors.dtype.itemsize * vectors.entries + SLACK) + SLACK
    return sum(DENSE * vector.entries + SLACK for vector in vectors.values()) + SLACK


def _parse(message: bytes, into: Down | Up, vectors: Mapping[str, Awaited] | Within) -> None:
    most = longest(vectors)
    if len(message) > most:
        raise WireError(f"a message of {most} bytes at the most is needed, one of {len(message)} was given")
    try:
        into.ParseFromString(message)
    except DecodeError as error:
        raise WireError(f"this is no message of the protocol: {error}") from None
    if into.version != VERSION:
        raise WireError(f"version {VERSION} of the protocol is needed, {into.version} was given: update the other end")


def _named(found: object, wanted: Mapping[str, Awaited] | Within) -> Mapping[str, Awaited]:
    """What is awaited, by the names that were given."""
    if not isinstance(wanted, Within):
        return wanted
    given: list[Vector] = list(found)  # type: ignore[call-overload]
    large = next((vector for vector in given if vector.entries > wanted.entries), None)
    if large is not None:
        raise WireError(
            f"vectors of {wanted.entries} entries at the most are needed, one of {large.entries} was given; do both"
            " ends have the same model?"
        )
    if len(given) > MANY:
        raise WireError(f"{MANY} vectors at the most are needed, {len(given)} were given")
    return {vector.name: Awaited(vector.entries, None, wanted.dtype) for vector in given}


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
        if awaited.whole and not vector.codec:
            codec, awaited = "", awaited._replace(codec=None)
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
