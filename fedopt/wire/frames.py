"""Messages in parts that fit a frame, and back, without trust in what a part says of the whole."""

from __future__ import annotations

import io
from collections.abc import Iterator

from fedopt.types import WireError
from fedopt.wire.link_pb2 import Chunk, Frame

PART = 1 << 18
"""Bytes of a message in one frame. Several copies of a frame are on their way for each client, so larger ones cost the
server memory; smaller ones cost time."""

FRAME = PART + (1 << 12)
"""Bytes of a frame at the most; a longer one is not taken in."""


def cut(exchange: int, message: bytes) -> Iterator[Frame]:
    """The frames of a message."""
    parts = max(1, -(-len(message) // PART))
    for part in range(parts):
        # no name for the part: a generator that waits keeps what it has names for
        yield Frame(
            chunk=Chunk(exchange=exchange, part=part, parts=parts, data=message[part * PART : (part + 1) * PART])
        )


class Whole:
    """A message that comes in parts, in any order; one that comes twice counts once.

    limit: bytes of the message at the most. Nothing is reserved for an announcement beyond it, and what is reserved is
    filled in place.
    """

    def __init__(self, limit: int) -> None:
        self._most = max(1, -(-limit // PART))
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
                self._content = io.BytesIO(bytes(self._parts * PART))
        data = chunk.data
        last = chunk.part == self._parts - 1
        fits = len(data) <= PART if last else len(data) == PART
        if chunk.parts != self._parts or chunk.part >= self._parts or not fits:
            raise WireError(
                f"parts 0 to {self._parts - 1} of {PART} bytes each, the last no longer, are needed; part {chunk.part}"
                f" of {chunk.parts} with {len(data)} bytes was given"
            )
        if self._parts == 1:
            return data
        if chunk.part not in self._have:
            self._have.add(chunk.part)
            self._length += len(data)
            self._content.seek(chunk.part * PART)
            self._content.write(data)
        if len(self._have) < self._parts:
            return None
        self._content.truncate(self._length)
        return self._content.getvalue()  # the buffer itself
