"""Runs the cells of a sweep in processes of their own.

A process takes one cell after another, computes with one thread and has a process group of its own, so that Ctrl-C
reaches the sweep alone: it asks the cells to stop after the exchange in hand, each with a checkpoint. A process that
dies takes its cell with it and no other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from rich.console import Console

from fedopt.report import html, sweep_page, units
from fedopt.sweep.grid import Cell, Sweep
from fedopt.sweep.ledger import Ledger, Outcome
from fedopt.sweep.view import SweepView
from fedopt.types import FedoptError

LOOK_SECONDS = 0.25
"""Between two looks at what the user asked for."""
AGAIN_SECONDS = 1.0
"""Before a cell that another process runs is asked for again."""
END_SECONDS = 10.0
"""What a process gets to end by itself."""


def results(sweep: Sweep) -> Ledger:
    """What the cells came to so far, written to the sweep's folder; nothing is run."""
    ledger = Ledger(sweep)
    _finish(sweep, ledger)
    return ledger


def run(sweep: Sweep, jobs: int = 1, *, console: Console | None = None) -> tuple[Ledger, bool]:
    """Run what is not finished, in `jobs` processes; how everything stands then, and whether the user stopped it.

    Refused and failed cells are tried again, interrupted ones go on from their newest checkpoint. The progress is shown
    on `console`, if one is given.
    """
    ledger = Ledger(sweep, known=False)
    todo = ledger.unfinished()
    ledger.write()
    stopped = False
    if todo:
        rounds, total = sum(cell.config.run.rounds for cell in todo), len(sweep.runs)
        view = SweepView(sweep.name, total - len(todo), total, rounds, console)
        with (sweep.out / "workers.log").open("ab") as log, view, _asked() as asked:
            pool = _Pool(sweep, ledger, view, log, asked)
            try:
                stopped = pool.work_through(todo, jobs)
            finally:
                pool.close()
    _finish(sweep, ledger)
    return ledger, stopped


def _finish(sweep: Sweep, ledger: Ledger) -> None:
    """Write what is made of the cells, and the reports that a process could not write any more."""
    if sweep.reports:
        for key in sweep.runs:
            folder = sweep.folder / key
            if ledger.state(key) == "finished" and not (folder / "report.html").exists():
                with contextlib.suppress(FedoptError, OSError):
                    html.write(folder)
                ledger.refresh(key)
    ledger.write()
    sweep_page.write(sweep.out)


@contextlib.contextmanager
def _asked() -> Iterator[list[int]]:
    """The signals by which the user asked to stop, so far."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {
        n: signal.signal(n, lambda number, frame: asked.append(number)) for n in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Worker:
    """A process, and the cell that it has in hand."""

    def __init__(self, log: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedopt.sweep.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                process_group=0,
                # modules that are found here have to be found there
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        self.cell: Cell | None = None

    def take(self, cell: Cell, sweep: Sweep) -> None:
        self.cell = cell
        folder = str((sweep.folder / cell.key).absolute())
        job = {"config": cell.config.document(), "key": cell.key, "folder": folder, "report": sweep.reports}
        with contextlib.suppress(OSError):  # a process that has died is noticed where its answer is read
            self.connection.send(job)

    def hear(self) -> tuple[Any, ...] | None:
        """What it says; None if it has died."""
        try:
            said: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):
            return None
        return said

    def tell(self, number: int) -> None:
        """Send a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> str:
        """Let it end, or make it; how it ended."""
        self.connection.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        code = self.process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class _Pool:
    """The processes of a sweep."""

    def __init__(self, sweep: Sweep, ledger: Ledger, view: SweepView, log: IO[bytes], asked: list[int]) -> None:
        self.sweep, self.ledger, self.view, self.log, self.asked = sweep, ledger, view, log, asked
        self.workers: dict[int, _Worker] = {}
        self.waiting: deque[Cell] = deque()
        self.later: deque[tuple[float, Cell]] = deque()
        self.heeded = 0

    def work_through(self, cells: list[Cell], jobs: int) -> bool:
        """Run the cells; true if the user stopped it."""
        self.waiting.extend(cells)
        while self.waiting or self.later or any(worker.cell for worker in self.workers.values()):
            self._heed()
            while self.later and self.later[0][0] <= time.monotonic():
                self.waiting.append(self.later.popleft()[1])
            self._hand_out(jobs)
            busy = {worker.connection: slot for slot, worker in self.workers.items() if worker.cell}
            for connection in wait(list(busy), LOOK_SECONDS):
                self._hear(busy[connection])  # type: ignore[index]
        return bool(self.heeded)

    def _heed(self) -> None:
        """Do what the user asks by Ctrl-C: stop after the exchange in hand; asked again, stop at once."""
        if len(self.asked) <= self.heeded:
            return
        first = not self.heeded
        self.heeded = len(self.asked)
        self.waiting.clear()
        self.later.clear()
        if first:
            self.view.say("stopping after the exchange in hand; Ctrl-C once more stops at once")
        for worker in self.workers.values():
            worker.tell(signal.SIGTERM if first else signal.SIGINT)

    def _hand_out(self, jobs: int) -> None:
        while self.waiting:
            slot = next((slot for slot, worker in self.workers.items() if worker.cell is None), None)
            if slot is None:
                if len(self.workers) >= jobs:
                    return
                slot = next(slot for slot in range(jobs) if slot not in self.workers)
                self.workers[slot] = _Worker(self.log)
            cell = self.waiting.popleft()
            self.workers[slot].take(cell, self.sweep)
            self.view.begin(slot, self.sweep.label(cell), cell.config.run.rounds)

    def _hear(self, slot: int) -> None:
        worker = self.workers[slot]
        said = worker.hear()
        if said is not None and said[0] == "round":
            self.view.advance(slot, said[1])
            return
        cell, worker.cell = worker.cell, None
        assert cell is not None
        if said is not None:
            outcome = Outcome(*said[1:])
        else:
            how = worker.end()
            del self.workers[slot]
            log = self.sweep.out / "workers.log"
            reason = f"its process ended with {how}; what it wrote is in {log}"
            outcome = Outcome("interrupted") if self.heeded else Outcome("failed", reason)
        if outcome.state == "elsewhere":
            self.view.put_back(slot)
            if not self.heeded:
                self.later.append((time.monotonic() + AGAIN_SECONDS, cell))
            return
        if outcome.state in ("finished", "interrupted"):
            self.ledger.refresh(cell.key)
        else:
            self.ledger.note(cell.key, outcome)
        self.ledger.write()
        self.view.end(slot, outcome.state, self._came_to(cell.key, outcome))

    def _came_to(self, key: str, outcome: Outcome) -> str:
        if outcome.state != "finished":
            return f"{outcome.state}: {outcome.message}" if outcome.message else outcome.state
        name = self.sweep.metric
        value = self.ledger.value(key)
        shown = self.ledger.message(key) if value is None else f"{units.label(name)} {units.measure(name, value)}"
        return f"{shown}, {units.duration(self.ledger.seconds(key))}"

    def close(self) -> None:
        """End all processes; those at work first stop their cells."""
        for worker in self.workers.values():
            if worker.cell is not None:
                worker.tell(signal.SIGTERM)
        for worker in self.workers.values():
            worker.end()
