"""A client's process: takes part in the run that it is invited to, over the link, until the run is over.

    python -m fedopt.worker --client 3 [--state FOLDER] [--data FOLDER] < invitation

The invitation is read from the first line of standard input, since it holds a token; when that is closed, whoever
started this process is gone, and it ends. Exit status: 0 the run is over, 3 the server was
lost, 4 it refuses this client or this client cannot do what is asked; the last line of standard output says why.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
from pathlib import Path

import torch

from fedopt.deployment import LARGEST, Invitation, at_client
from fedopt.types import FedoptError
from fedopt.wire.link import Identity, LinkLost, talk

LOST, REFUSED, ORPHANED = 3, 4, 5


class Purse:
    """What to come in with: the token at first, then the newest secret, which outlives the process."""

    def __init__(self, token: bytes, path: Path | None) -> None:
        self._path, self._secret = path, token
        self._of = hashlib.sha256(token).hexdigest()
        if path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                stored = json.loads(path.read_text("utf-8"))
                if stored["token"] == self._of:
                    self._secret = bytes.fromhex(stored["secret"])

    def secret(self) -> bytes:
        """The newest."""
        return self._secret

    def keep(self, secret: bytes) -> None:
        """One more, on disk before it is used."""
        self._secret = secret
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({"token": self._of, "secret": secret.hex()}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def main() -> int:
    """Take part; the exit status."""
    arguments = argparse.ArgumentParser(description="A client of a deployed federation.")
    arguments.add_argument("--client", type=int, required=True)
    arguments.add_argument("--state", type=Path)
    arguments.add_argument("--data")
    given = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    torch.set_num_threads(1)  # what the serial executor computes with
    try:
        invitation = Invitation.read(sys.stdin.readline(LARGEST + 1))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        resident = at_client(invitation, given.client, given.state, given.data)
        purse = Purse(
            bytes.fromhex(invitation.token), None if given.state is None else given.state / f"{given.client}.secret"
        )
        reason = talk(
            invitation.address,
            Identity(invitation.run, invitation.library, given.client, invitation.node),
            purse.secret,
            purse.keep,
            resident.answer,
            limit=resident.limit,
            root=invitation.authority.encode() or None,
            reconnect_s=invitation.reconnect_s,
        )
    except LinkLost as error:
        print(error, flush=True)
        return LOST
    except FedoptError as error:
        print(error, flush=True)
        return REFUSED
    print(reason, flush=True)
    return 0


def _end_with_parent() -> None:
    while sys.stdin.read(1 << 16):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
