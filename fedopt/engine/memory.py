"""What clients keep between exchanges, for those who ever took part."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedopt.engine.checkpoint import Pieces, write_pieces
from fedopt.types import FedoptError, Named, Replies

WHOLE = 8 << 20
"""Memories of fewer bytes are stored as a whole in each checkpoint."""
PIECE = 64 << 20
"""Bytes of rows that are written at a time."""
MOST_PIECES = 256
"""More pieces than this, beside those that a whole memory takes, are replaced by the whole."""


class ClientMemory:
    """Rows by client for each declared key; a client that never answered has the declared first value.

    Storage grows with the clients that answered, not with the population. Rows change only by `commit`, after the
    server has absorbed the replies, so a failed or repeated exchange never applies a change twice.

    budget_mb: rows of more than so many MB lie in memory-mapped files, of which the system keeps in memory what it has
        room for; None is no bound.
    folder: where such files are made, the system's temporary folder by default. They have no name once they are made,
        so they are gone with the process, however it ends.
    """

    def __init__(
        self, first: Named, clients: int, budget_mb: float | None = None, folder: str | Path | None = None
    ) -> None:
        self.first = first
        self.slot = torch.zeros(clients, dtype=torch.int64)
        """Row of each client; row 0 holds the first values."""
        self.used = 1
        self.commits = 0
        """Exchanges whose changes were stored; counted before anything is changed."""
        self.rows = {name: value[None].clone() for name, value in first.items()}
        self._budget = math.inf if budget_mb is None else budget_mb * 2**20
        self._folder = folder
        self._each = sum(value.numel() * value.element_size() for value in first.values())
        self._unsaved = torch.zeros(clients, dtype=torch.bool)
        self._pieces = Pieces(Path(), ())
        self._pieces_bytes = 0

    def of(self, clients: Tensor) -> Named:
        """The memory of these clients, `[n, ...]` by key."""
        slots = self.slot[clients]
        return {name: rows[slots] for name, rows in self.rows.items()}

    def commit(self, replies: Replies) -> None:
        """Store the changed rows of the accepted clients."""
        self.commits += 1
        if replies.memory and replies.clients.numel():
            self._write(replies.clients, replies.memory)

    def snapshot(self) -> Named:
        """All rows that differ from the first values by right, ordered by client."""
        return self._some(torch.nonzero(self.slot).flatten())

    def save(self, folder: Path) -> Named | Pieces:
        """What a checkpoint below `folder` stores: a small memory as a whole, a large one as pieces on disk.

        Pieces are kept from one checkpoint to the next, and only rows changed since are written. When the pieces have
        become twice as large as the memory, or many, they are replaced. Raises CheckpointError, losing nothing.
        """
        whole = (self.used - 1) * self._each
        if whole < WHOLE:
            return self.snapshot()
        changed = torch.nonzero(self._unsaved).flatten()
        earlier = self._pieces.names if self._pieces.folder == folder else ()
        written = self._pieces_bytes + changed.numel() * self._each
        if not earlier or written > 2 * whole or len(earlier) >= MOST_PIECES + whole // PIECE:
            changed, earlier, written = torch.nonzero(self.slot).flatten(), (), whole
        self._pieces = Pieces(folder, (*earlier, *write_pieces(folder, self._cut(changed))))
        self._pieces_bytes = written
        self._unsaved.zero_()
        return self._pieces

    def restore(self, snapshot: Mapping[str, Tensor] | Pieces) -> None:
        """The memory that `snapshot` or `save` described."""
        stored = 0
        for piece in snapshot.read() if isinstance(snapshot, Pieces) else [snapshot]:
            rows = {name.removeprefix("row."): value for name, value in piece.items() if name.startswith("row.")}
            if rows:
                self._write(piece["clients"], rows)
                stored += piece["clients"].numel() * self._each
        if isinstance(snapshot, Pieces):
            self._pieces, self._pieces_bytes = snapshot, stored
            self._unsaved.zero_()

    def _some(self, clients: Tensor) -> Named:
        slots = self.slot[clients]
        return {"clients": clients, **{f"row.{name}": rows[slots] for name, rows in self.rows.items()}}

    def _cut(self, clients: Tensor) -> Iterator[Named]:
        if clients.numel():
            yield from (self._some(some) for some in clients.split(max(1, PIECE // self._each)))

    def _write(self, clients: Tensor, changed: Named) -> None:
        unknown = set(changed) - set(self.first)
        if unknown:
            raise FedoptError(
                f"a client program changed the memory '{min(unknown)}', which its strategy does not declare;"
                f" declared: {', '.join(self.first) or 'none'}"
            )
        fresh = clients[self.slot[clients] == 0]
        needed = self.used + fresh.numel()
        self._grow(needed)
        self.slot[fresh] = torch.arange(self.used, needed)
        for name, rows in self.rows.items():
            rows[self.used : needed] = self.first[name]
        self.used = needed
        self._unsaved[clients] = True
        slots = self.slot[clients]
        for name, values in changed.items():
            self.rows[name][slots] = values

    def _grow(self, needed: int) -> None:
        for name, rows in self.rows.items():
            if needed > rows.shape[0]:
                capacity = max(needed, 2 * rows.shape[0])
                grown = self._room(rows, capacity) if capacity * self._each > self._budget else None
                grown = rows.new_empty((capacity, *rows.shape[1:])) if grown is None else grown
                grown[: self.used] = rows[: self.used]
                self.rows[name] = grown

    def _room(self, rows: Tensor, capacity: int) -> Tensor | None:
        """Room for so many rows in a file; None for rows of nothing."""
        numel = capacity * rows[0].numel()
        if not numel:
            return None
        try:
            handle, path = tempfile.mkstemp(prefix=".fedopt-memory-", dir=self._folder)
            try:
                # all of it at once: a disk that is full later would end the process without a word
                os.posix_fallocate(handle, 0, numel * rows.element_size())
                whole = torch.from_file(path, shared=True, size=numel * rows.element_size(), dtype=torch.uint8)
            finally:
                os.close(handle)
                os.unlink(path)
        except OSError as error:
            raise FedoptError(
                f"the clients' memory needs {numel * rows.element_size() / 2**20:.0f} MB in a file of"
                f" {self._folder or tempfile.gettempdir()} ({error}); free some space, or raise the budget"
            ) from error
        return whole.view(rows.dtype).reshape(capacity, *rows.shape[1:])
