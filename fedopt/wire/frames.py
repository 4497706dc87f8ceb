"""Messages in parts that fit a frame, and back, without trust in what a part says of the whole."""

from __future__ import annotations

from collections.abc import Iterator

from fedopt.types import WireError
from fedopt.wire.link_pb2 import Chunk, Frame

PART = 1 << 20
"""Bytes of a message in one frame."""

FRAME = PART + (1 << 12)
"""Bytes of a frame at the most; a longer one is not taken in."""


def cut(exchange: int, message: bytes) -> Iterator[Frame]:
    """The frames of a message."""
    parts = max(1, -(-len(message) // PART))
    for part in range(parts):
        data = message[part * PART : (part + 1) * PART] if parts > 1 else message
        yield Frame(chunk=Chunk(exchange=exchange, part=part, parts=parts, data=data))


class Whole:
    """A message that comes in parts, in any order; one that comes twice counts once.

    limit: bytes of the message at the most. Memory is taken for what has come, never for what is announced.
    """

    def __init__(self, limit: int) -> None:
        self._most = max(1, -(-limit // PART))
        self._parts: int | None = None
        self._have: dict[int, bytes] = {}

    def take(self, chunk: Chunk) -> bytes | None:
        """The message, once all of it is here. Raises WireError for a part that does not belong to such a message."""
        if self._parts is None:
            if not 1 <= chunk.parts <= self._most:
                raise WireError(f"a message of 1 to {self._most} parts is needed, one of {chunk.parts} was announced")
            self._parts = chunk.parts
        last = chunk.part == self._parts - 1
        fits = len(chunk.data) <= PART if last else len(chunk.data) == PART
        if chunk.parts != self._parts or chunk.part >= self._parts or not fits:
            raise WireError(
                f"parts 0 to {self._parts - 1} of {PART} bytes each, the last no longer, are needed; part {chunk.part}"
                f" of {chunk.parts} with {len(chunk.data)} bytes was given"
            )
        self._have.setdefault(chunk.part, chunk.data)
        if len(self._have) < self._parts:
            return None
        return self._have[0] if self._parts == 1 else b"".join(self._have[part] for part in range(self._parts))
