"""A client's process: takes part in the run that it is invited to, over the link, until the run is over.

    python -m fedopt.worker --client 3 [--state FOLDER] [--data FOLDER] [--device cuda] < invitation

The invitation is read from the first line of standard input, since it holds a token; when that is closed, whoever
started this process is gone, and it ends. Exit status: 0 the run is over, 3 the server was
lost, 4 it refuses this client or this client cannot do what is asked; the last line of standard output says why.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedopt.deployment import LARGEST, Invitation, at_client
from fedopt.engine.resident import Resident
from fedopt.types import FedoptError
from fedopt.wire.journal import Plain
from fedopt.wire.link import Identity, LinkLost, talk

log = logging.getLogger(__name__)

LOST, REFUSED, ORPHANED = 3, 4, 5

LIVED_S = 3.0

DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG: a child ends with its parent."""


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
    arguments.add_argument("--device", default="cpu")
    given = arguments.parse_args()
    handler = logging.StreamHandler(sys.stderr)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    torch.set_num_threads(1)  # what the serial executor computes with
    try:
        invitation = Invitation.read(sys.stdin.readline(LARGEST + 1))
        ids = {"run": invitation.run, "experiment": invitation.experiment, "client": str(given.client)}
        handler.setFormatter(Plain(ids))
        resident = at_client(invitation, given.client, given.state, given.data, given.device)
        if given.device == "cpu" and hasattr(os, "fork"):
            return _spared(lambda: _take_part(invitation, resident, given))
        return _take_part(invitation, resident, given)
    except FedoptError as error:
        print(error, flush=True)
        return REFUSED


def _take_part(invitation: Invitation, resident: Resident, given: argparse.Namespace) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    purse = Purse(
        bytes.fromhex(invitation.token), None if given.state is None else given.state / f"{given.client}.secret"
    )
    try:
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


def _spared(work: Callable[[], int]) -> int:
    """Work in a child of this process, which has all that takes long behind it: one that is killed is back at once.

    One that does not live for long ends this process too, and whoever started it counts how often that happens.
    """
    while True:
        began, parent = time.monotonic(), os.getpid()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(AttributeError):  # of Linux alone
                ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
            os._exit(work() if os.getppid() == parent else ORPHANED)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status >= 0:
            return status
        if time.monotonic() - began < LIVED_S:
            return 1
        log.warning("the process that takes part was ended by signal %d and is started again", -status)


def _end_with_parent() -> None:
    while sys.stdin.read(1 << 16):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
