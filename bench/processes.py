"""An arm as a process: started, asked, watched for memory, and ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ArmFailed(Exception):
    """The arm ended, or did not answer in time."""


class Process:
    """One arm, running. `peak` is the most memory that its processes held together, in bytes."""

    def __init__(self, command: list[str], environment: dict[str, str], startup_s: float) -> None:
        import psutil

        self._psutil = psutil
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self.started = time.time()
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        self.peak = 0
        self.held = 0
        """What the processes held together when they were last looked at, in bytes."""
        self._family: dict[int, Any] = {}
        self._found = 0.0
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self.answer(startup_s)["ready"]

    @property
    def startup_s(self) -> float:
        """From the start of the process until it could begin its first round."""
        return float(self.ready - self.started)

    def ask(self, limit_s: float, **question: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(question) + "\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise ArmFailed(self._last_words("it ended")) from None
        return self.answer(limit_s)

    def answer(self, limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        while True:
            self._sample()
            with contextlib.suppress(queue.Empty):
                text = self._answers.get(timeout=0.1)
                self._sample()
                if text is None:
                    raise ArmFailed(self._last_words("it ended"))
                answered: dict[str, Any] = json.loads(text)
                return answered
            if time.monotonic() > until:
                raise ArmFailed(self._last_words(f"no answer within {limit_s:.0f} s"))

    def end(self) -> None:
        """Ask it to quit; whatever it started and left behind is killed."""
        self._find_family()
        with contextlib.suppress(OSError, ValueError):
            assert self.popen.stdin is not None
            self.popen.stdin.write('{"do": "quit"}\n')
            self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=20)
        for member in self._family.values():
            with contextlib.suppress(self._psutil.Error):  # is_running compares the start time too: no other's number
                if member.is_running():
                    member.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=10)
        self.errors.close()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _find_family(self) -> None:
        with contextlib.suppress(self._psutil.Error):
            parent = self._psutil.Process(self.popen.pid)
            for member in [parent, *parent.children(recursive=True)]:
                self._family.setdefault(member.pid, member)
        self._found = time.monotonic()

    def _sample(self) -> None:
        if time.monotonic() - self._found > 1.0:
            self._find_family()
        held = []
        for member in list(self._family.values()):
            with contextlib.suppress(self._psutil.Error):
                memory = member.memory_info()
                held.append((memory.rss, memory.shared))
        self.held = together(held)
        self.peak = max(self.peak, self.held)

    def _last_words(self, what: str) -> str:
        self.errors.flush()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return f"{what}: {lines[-1][:300] if lines else 'it said nothing'}"


def together(held: list[tuple[int, int]]) -> int:
    """Memory of several processes from (resident, shared) of each: private parts added, shared ones counted once."""
    return sum(rss - shared for rss, shared in held) + max((shared for _, shared in held), default=0)


def environment(threads: int) -> dict[str, str]:
    """The environment of an arm: the threads it was promised, no cluster of somebody else's, no telemetry."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "FLWR_", "PFL_", "VIRTUAL_ENV", "PYTHONHOME"))
    }
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("BENCH_FEDOPT", ""), str(ROOT)])),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore",
    }
