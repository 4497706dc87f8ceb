"""Messages in parts that fit a frame, and back, without trust in what a part says of the whole."""

from __future__ import annotations

import io
from collections.abc import Iterator

from fedopt.types import WireError
from fedopt.wire.link_pb2 import Chunk, Frame

PART = 1 << 18
"""Bytes of a message in one frame, at the most."""

FEW = 16
"""Clients that get frames as long as that."""

FRAME = PART + (1 << 12)
"""Bytes of a frame at the most; a longer one is not taken in."""


def part_size(clients: int) -> int:
    """Bytes of a message in one frame, in a run with so many clients.

    Frames of all clients are on their way at once, so large ones cost the server memory, a copy or two for each client;
    small ones cost time, which a few clients do not have to pay.
    """
    return PART if clients <= FEW else PART // 4


def cut(exchange: int, message: bytes, size: int = PART) -> Iterator[Frame]:
    """The frames of a message, with so many bytes of it in each."""
    parts = max(1, -(-len(message) // size))
    for part in range(parts):
        # no name for the part: a generator that waits keeps what it has names for
        yield Frame(
            chunk=Chunk(exchange=exchange, part=part, parts=parts, data=message[part * size : (part + 1) * size])
        )


class Whole:
    """A message that comes in parts, in any order; one that comes twice counts once.

    limit: bytes of the message at the most; size: of it in each part. Nothing is reserved for an announcement beyond
    the limit, and what is reserved is filled in place.
    """

    def __init__(self, limit: int, size: int = PART) -> None:
        self._size, self._most = size, max(1, -(-limit // size))
        self._parts: int | None = None
        self._have: set[int] = set()
        self._length = 0
        self._content = io.BytesIO()

    def take(self, chunk: Chunk) -> bytes | None:
        """The message, once all of it is here. Raises WireError for a part that does not belong to such a message."""
        if self._parts is None:
            if not 1 <= chunk.parts <= self._most:
                raise WireError(f"a message of 1 to {self._most} parts is needed, one of {chunk.parts} was announced")
            self._parts = chunk.parts
            if self._parts > 1:  # zeros that the system gives one page at a time, as they are written over
                self._content = io.BytesIO(bytes(self._parts * self._size))
        data = chunk.data
        last = chunk.part == self._parts - 1
        fits = len(data) <= self._size if last else len(data) == self._size
        if chunk.parts != self._parts or chunk.part >= self._parts or not fits:
            raise WireError(
                f"parts 0 to {self._parts - 1} of {self._size} bytes each, the last no longer, are needed;"
                f" part {chunk.part} of {chunk.parts} with {len(data)} bytes was given"
            )
        if self._parts == 1:
            return data
        if chunk.part not in self._have:
            self._have.add(chunk.part)
            self._length += len(data)
            self._content.seek(chunk.part * self._size)
            self._content.write(data)
        if len(self._have) < self._parts:
            return None
        self._content.truncate(self._length)
        return self._content.getvalue()  # the buffer itself
