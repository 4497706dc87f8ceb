"""Who may open a stream to the server of a run, and with which secret.

A client is given a token by somebody who knows it already (Flower, that checked its key). The token opens one stream.
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
    """Tokens and secrets of the clients of one run, as hashes; any thread may ask."""

    def __init__(self, run: str, library: str) -> None:
        self.run, self.library = run, library
        self._nodes: dict[int, str] = {}
        self._good: dict[int, list[bytes]] = {}
        self._lock = threading.Lock()

    def expect(self, client: int, node: str) -> bytes:
        """A token for this client at this node. All that it had before is worth nothing from now on."""
        token = secrets.token_bytes(LENGTH)
        with self._lock:
            self._nodes[client] = node
            self._good[client] = [_hash(token)]
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
            good = self._good.get(client, ())
            # every one of them is compared, and a client that nobody knows takes as long
            shown = _hash(secret)
            known = [hmac.compare_digest(one, shown) for one in good or (bytes(LENGTH),)]
            if not any(known) or not hmac.compare_digest(self._nodes.get(client, "").encode(), node.encode()):
                raise Refusal("the token is not, or no longer, that of this client at this node")
            fresh = secrets.token_bytes(LENGTH)
            self._good[client] = [shown, _hash(fresh)]
            return fresh

    def seen(self, client: int) -> None:
        """The client has its newest secret; the one before is worth nothing from now on."""
        with self._lock:
            self._good[client] = self._good.get(client, [])[-1:]

    def revoke(self, client: int) -> None:
        """Nobody comes in as this client until it is expected again."""
        with self._lock:
            self._good.pop(client, None)
            self._nodes.pop(client, None)


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
