"""Who may open a stream to the server of a run, and with which secret.

A node is given a token by somebody who knows it already (Flower, that checked its key). The token opens one stream, as
one client, who is at this node from then on.
On it the server gives the client a secret, with which it can come back once, to be given another. Until the client has
shown that it got the new secret, the one before is good too: a stream that breaks in between shuts nobody out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading

LENGTH = 32
"""Bytes of a token and of a secret."""


class Refusal(Exception):
    """Why somebody may not come in."""


class Roster:
    """Tokens and secrets of the nodes of one run, as hashes; any thread may ask.

    clients: how many there are.
    """

    def __init__(self, run: str, library: str, clients: int) -> None:
        self.run, self.library, self.clients = run, library, clients
        self._good: dict[str, list[bytes]] = {}
        self._at: dict[int, str] = {}
        """The node of each client that was here."""
        self._only: dict[str, int] = {}
        """The client that a node may be, where that is known."""
        self._lock = threading.Lock()

    def expect(self, node: str, client: int | None = None) -> bytes:
        """A token for this node, as this client if it is known. All that it had before is worth nothing from now on."""
        token = secrets.token_bytes(LENGTH)
        with self._lock:
            self._good[node] = [_hash(token)]
            if client is not None:
                self._only[node] = client
        return token

    def admit(self, run: str, library: str, client: int, node: str, secret: bytes) -> bytes:
        """A new secret for a client who showed a good one. Raises Refusal."""
        if not hmac.compare_digest(run.encode(), self.run.encode()):
            raise Refusal("this is the server of another run; wait for the message that starts a new one")
        if library != self.library:
            raise Refusal(
                f"fedopt {self.library} is needed, {library[:40]} was given; install the same version at both ends"
            )
        with self._lock:
            # every one of them is compared, and a node that nobody knows takes as long
            shown = _hash(secret)
            known = [hmac.compare_digest(one, shown) for one in self._good.get(node) or (bytes(LENGTH),)]
            if not any(known):
                raise Refusal("the token is not, or no longer, that of this node")
            if not 0 <= client < self.clients:
                raise Refusal(f"there are {self.clients} clients, from 0 on, and this one would be number {client}")
            if self._only.get(node, client) != client:
                raise Refusal(f"the key of this node is client {self._only[node]}'s, and it would be number {client}")
            others = [c for c, at in self._at.items() if at == node and c != client]
            if others or self._at.get(client, node) != node:
                raise Refusal(
                    f"this node is client {others[0]}"
                    if others
                    else f"client {client} is at another node; give each node a partition-id of its own"
                )
            fresh = secrets.token_bytes(LENGTH)
            self._good[node], self._at[client] = [shown, _hash(fresh)], node
            return fresh

    def seen(self, node: str) -> None:
        """The node has its newest secret; the one before is worth nothing from now on."""
        with self._lock:
            self._good[node] = self._good.get(node, [])[-1:]

    def drop(self, node: str) -> None:
        """The node is gone: what it had is worth nothing, and its client may be at another node."""
        with self._lock:
            self._good.pop(node, None)
            self._only.pop(node, None)
            self._at = {client: at for client, at in self._at.items() if at != node}

    def node(self, client: int) -> str | None:
        """Where a client is."""
        return self._at.get(client)


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
