"""A client's side of a federation: its SuperNode is kept, and what the server has against it is said in a line."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedopt.deploy import folder as folders
from fedopt.deploy.processes import command, end, started
from fedopt.deploy.serve import environment
from fedopt.types import FedoptError

log = logging.getLogger(__name__)

LOOK_S = 0.5

LONGEST_WAIT_S = 60.0

RETRIES = 20
"""Of a SuperNode before it ends; it is started again, later and later."""

CLOCK_S = 60.0
"""Beyond what two clocks differ by that are kept; Flower refuses some minutes."""

REFUSALS = (
    (r"CERTIFICATE_VERIFY_FAILED.*not yet valid", "its certificate is not yet valid; is the clock here right?"),
    (r"CERTIFICATE_VERIFY_FAILED.*expired", "its certificate has expired; the federation needs a new one"),
    (r"CERTIFICATE_VERIFY_FAILED", "its certificate is not from this federation's authority (ca.pem)"),
    (r"WRONG_VERSION_NUMBER|record layer failure", "it does not speak TLS"),
    (r"\b2004\b|not registered|PERMISSION_DENIED", "this client's key is not, or no longer, registered there"),
    (r"\b2001\b|UNAUTHENTICATED|Unauthenticated", "this client showed no key that is known there"),
)
"""What Flower's SuperNode says, and what it means."""


class Refused(FedoptError):
    """The server will not have this client, however often it asks."""


def join(folder: Path, over: Callable[[], bool], patience_s: float = 180.0) -> None:
    """Take part until `over`. Raises Refused when the server has refused this client for `patience_s`.

    A client may be there before the server has enrolled it, so the first refusal is not the last word.
    """
    folder = folder.resolve()
    bundle = folders.bundle(folder)
    state = folder / "state"
    env = environment(state)
    if bundle.data:
        env["FEDOPT_DATA"] = bundle.data
    config = f'partition-id={bundle.client} state-path="{state}" device="{bundle.device}"'
    if bundle.data_path:
        config += f' data-path="{bundle.data_path}"'
    program = [
        command("flower-supernode"), "--superlink", bundle.server, "--root-certificates", "ca.pem",
        "--auth-supernode-private-key", "node.key", "--host", "127.0.0.1", "--max-retries", str(RETRIES),
        "--node-config", config,
    ]  # fmt: skip
    wait, refused_since = 1.0, None
    while not over():
        output = state / "supernode.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        before, began = output.stat().st_size if output.exists() else 0, time.monotonic()
        process = started([*program, "--port", str(_free_port())], env, output, folder)
        try:
            status = _watched(process, state / "alive", over)
        finally:
            end(process)
        if status is None:
            return
        said = output.read_bytes()[before:].decode("utf-8", "replace")
        reason, now = refusal(said), time.monotonic()
        long = now - began > LONGEST_WAIT_S
        if reason is None and not long:  # a SuperNode with a wrong clock ends without a word
            reason = clock(f"https://{bundle.server}/health", folder / "ca.pem")
        if reason is None or long:
            refused_since = None
        if reason is not None:
            refused_since = now if refused_since is None else refused_since
            if now - refused_since >= patience_s:
                raise Refused(f"the server at {bundle.server} refuses client {bundle.client}: {reason}")
        wait = 1.0 if long else min(LONGEST_WAIT_S, 2.0 * wait)
        why = reason or f"it ended with status {status}"
        log.warning("the SuperNode of client %d: %s; again in %g s", bundle.client, why, wait)
        until = time.monotonic() + wait
        while time.monotonic() < until and not over():
            time.sleep(LOOK_S)


def refusal(said: str) -> str | None:
    """What a SuperNode's output says against this client; None for nothing that is final."""
    for pattern, meaning in REFUSALS:
        if re.search(pattern, said):
            return meaning
    return None


def clock(address: str, authority: Path) -> str | None:
    """What the server's clock says against this machine's; None where they agree, or it does not answer."""
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with urllib.request.urlopen(address, timeout=5.0, context=context) as said:
            there = parsedate_to_datetime(said.headers["date"])
    except (OSError, TypeError, ValueError):
        return None
    apart = (datetime.now(UTC) - there).total_seconds()
    if abs(apart) < CLOCK_S:
        return None
    return f"this machine's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} its own; set it"


def _free_port() -> int:
    """For the programs that a SuperNode starts; it listens on this machine alone."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _watched(process: subprocess.Popen[bytes], mark: Path, over: Callable[[], bool]) -> int | None:
    """The exit status of the SuperNode; None where it was over before."""
    while not over():
        mark.touch()
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue
    return None
