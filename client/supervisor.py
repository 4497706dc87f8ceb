"""Keeps a client's worker process alive as long as its run goes on.

It needs nothing but the standard library, and its process little memory: the worker has torch, the data and the model.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

log = logging.getLogger(__name__)

DONE, LOST, REFUSED = 0, 3, 4
"""Exit statuses of a worker that ended of its own accord."""

LIVED_S = 30.0
"""A worker that lived for so long begins to be counted anew."""

DEATHS = 6
"""So many deaths in a row, each shortly after the start, and the worker is given up."""


def supervise(
    invitation: str, client: int, state: Path, data: str | None = None, device: str = "cpu"
) -> tuple[int, str]:
    """Run the worker, again at once whenever it dies, until it ends of its own accord: its status and last words."""
    deaths = 0
    while True:
        began = time.monotonic()
        status, words = _run(invitation, client, state, data, device)
        if status in (DONE, LOST, REFUSED):
            return status, words
        deaths = 1 if time.monotonic() - began > LIVED_S else deaths + 1
        if deaths >= DEATHS:
            return status, f"its worker died {deaths} times in a row, at last with status {status}: {words}"
        log.warning("the worker of client %d ended with status %d and is started again", client, status)
        time.sleep(0.1 * 2 ** (deaths - 1) if deaths > 1 else 0.0)


def _run(invitation: str, client: int, state: Path, data: str | None, device: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "fedopt.worker", "--client", str(client), "--state", str(state)]
    command += ["--device", device]
    if data is not None:
        command += ["--data", data]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdin is not None and worker.stdout is not None
            # it stays open: a worker whose supervisor is gone finds it closed, and ends
            worker.stdin.write(invitation + "\n")
            worker.stdin.flush()
            words = worker.stdout.read().strip().splitlines()
            return worker.wait(), words[-1] if words else ""
        except BrokenPipeError:
            return worker.wait(), ""
        finally:
            worker.kill()
