"""What clients keep between exchanges, for those who ever took part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedopt.types import FedoptError, Named, Replies


class ClientMemory:
    """Rows by client for each declared key; a client that never answered has the declared first value.

    Storage grows with the clients that answered, not with the population. Rows change only by `commit`, after the
    server has absorbed the replies, so a failed or repeated exchange never applies a change twice.
    """

    def __init__(self, first: Named, clients: int) -> None:
        self.first = first
        self.slot = torch.zeros(clients, dtype=torch.int64)
        """Row of each client; row 0 holds the first values."""
        self.used = 1
        self.commits = 0
        """Exchanges whose changes were stored; counted before anything is changed."""
        self.rows = {name: value[None].clone() for name, value in first.items()}

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
        """All rows that differ from the first values by right, ordered by client: what a checkpoint stores."""
        clients = torch.nonzero(self.slot).flatten()
        return {"clients": clients, **{f"row.{name}": rows[self.slot[clients]] for name, rows in self.rows.items()}}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """The memory that `snapshot` described."""
        rows = {name.removeprefix("row."): value for name, value in snapshot.items() if name.startswith("row.")}
        if rows:
            self._write(snapshot["clients"], rows)

    def _write(self, clients: Tensor, changed: Named) -> None:
        unknown = set(changed) - set(self.first)
        if unknown:
            raise FedoptError(
                f"a client program changed the memory '{min(unknown)}', which its strategy does not declare;"
                f" declared: {', '.join(self.first) or 'none'}"
            )
        fresh = clients[self.slot[clients] == 0]
        needed = self.used + fresh.numel()
        self.slot[fresh] = torch.arange(self.used, needed)
        for name, rows in self.rows.items():
            if needed > rows.shape[0]:
                grown = rows.new_empty((max(needed, 2 * rows.shape[0]), *rows.shape[1:]))
                grown[: rows.shape[0]] = rows
                self.rows[name] = grown
            self.rows[name][self.used : needed] = self.first[name]
        self.used = needed
        slots = self.slot[clients]
        for name, values in changed.items():
            self.rows[name][slots] = values
