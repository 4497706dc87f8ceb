"""Programs that are kept running, and that end with whoever started them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG."""

LIVED_S = 60.0
"""A program that ran for so long is started again at once when it ends."""

LONGEST_WAIT_S = 30.0


def command(name: str) -> str:
    """A program of this Python's environment, or of the search path."""
    if Path(name).is_absolute():
        return name
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


class Kept:
    """A program that `look` starts, and starts again when it has ended; its output goes to a file."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], output: Path, folder: Path) -> None:
        self.words, self.env, self.output, self.folder = [command(words[0]), *words[1:]], dict(env), output, folder
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._began = self._next = self._wait = 0.0

    @property
    def pid(self) -> int | None:
        """Of the running program."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def look(self) -> bool:
        """Start it if it does not run, later and later when it ends soon; whether it was started now."""
        if self.pid is not None:
            return False
        now = time.monotonic()
        if self.process is not None:
            name = Path(self.words[0]).name
            log.warning("%s ended with status %d; see %s", name, self.process.returncode, self.output)
            self._wait = 0.0 if now - self._began > LIVED_S else min(LONGEST_WAIT_S, 2.0 * self._wait + 0.5)
            self._next, self.process = now + self._wait, None
        if now < self._next:
            return False
        self.process, self._began = started(self.words, self.env, self.output, self.folder), now
        self.starts += 1
        return True

    def end(self, seconds: float = 10.0) -> None:
        """End it, by force if it takes longer."""
        if self.process is not None:
            end(self.process, seconds)
            self.process = None


def started(words: Sequence[str], env: Mapping[str, str], output: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A program in a process group of its own."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=dict(env), cwd=folder,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """End a program and its process group, by force if it takes longer."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def alive(pid: int) -> bool:
    """Whether a process runs, one that ended and was not waited for not counted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
