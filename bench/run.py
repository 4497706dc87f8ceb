"""Measures the cells of the tables that are not measured yet, and then writes docs/performance.md.

    python -m bench.run [--quick] [--task mlp-100 ...] [--arm pfl ...] [--again] [--scale 1.0]

All arms of a task are started, warmed up and then take turns, repetition by repetition, so that a change of the
machine's speed meets all of them (Flower's simulation, which keeps polling, has its turns alone afterwards). `auto` and
the stacked executors are started anew for each repetition. Every repetition is stored, one file per cell; a cell that
has a file is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine, tasks
from bench.arms.catalogue import Arm, arms, cells
from bench.processes import ROOT, ArmFailed, Process, environment
from bench.results import Cell as Stored
from bench.tasks import Task

RESULTS = ROOT / "bench" / "results"
VENVS = ROOT / "bench" / "venvs"
REPETITIONS = 3
STARTUP_S = 120.0
ANSWER_S = 300.0
"""No warm-up, repetition or accuracy may take longer."""
CELL_S = 240.0
"""What a cell may take; a slow arm runs fewer rounds, but two at least."""
ENOUGH = 0.6
"""Share of the wanted length with which a repetition is long enough."""
ACCURACY_S = 15.0

console = Console()


class Cell:
    """An arm on a task: the live process and what has been measured of it."""

    def __init__(self, task: Task, arm: Arm, sitting: str, scale: float) -> None:
        self.task, self.arm, self.scale = task, arm, scale
        self.process: Process | None = None
        self.repetitions = REPETITIONS
        self.found: dict[str, Any] = {
            "task": task.name,
            "arm": arm.name,
            "title": arm.title,
            "threads": arm.threads,
            "processes": arm.processes,
            "cohort": None,
            "sitting": sitting,
            "repetitions": [],
            "failed": None,
        }

    def attempt(self, step: str) -> None:
        """One step of the measurement; a failure is stored and ends the cell."""
        if self.found["failed"] is not None:
            return
        try:
            getattr(self, f"_{step}")()
        except ArmFailed as failure:
            self.found["failed"] = f"{step}: {failure}"
            self.end()

    def end(self) -> None:
        if self.process is not None:
            self.found["peak_memory_bytes"] = max(self.found.get("peak_memory_bytes", 0), self.process.peak)
            self.process.end()
            self.process = None

    @property
    def waits(self) -> bool:
        """Whether it has turns left."""
        if self.found["failed"] is not None:
            return False
        return self.process is not None or (self.arm.anew and len(self.found["repetitions"]) < self.repetitions)

    def _prepare(self) -> None:
        """Start, and warm up: the first round, the choice of `auto`, rounds until they take the same time."""
        command = [str(python(self.arm.kind)), "-m", f"bench.arms.{self.arm.kind}", self.task.name]
        self.process = Process([*command, *self.arm.arguments], environment(self.arm.threads), STARTUP_S)
        self._told("startup_s", self.process.startup_s)
        self._told("first_round_s", self._ask(do="rounds", count=1)["seconds"])
        if self.arm.name == "fedopt-auto":
            self._told("settling_s", self._ask(do="settle")["seconds"])
        second = self._ask(do="rounds", count=1)["seconds"]
        budget = 0.5 * self.task.rep_seconds * self.scale
        more = min(20, int(budget / max(second, 1e-4)))
        each = self._ask(do="rounds", count=more)["seconds"] / more if more else second
        self.found["warmup_rounds"] = 2 + more
        self.least = self.task.auto_rounds if self.arm.name == "fedopt-auto" else 1
        self.count, self.repetitions = share(
            each, self.task.rep_seconds * self.scale, least=self.least, repetitions=REPETITIONS, cell_s=CELL_S
        )

    def _repeat(self) -> None:
        """One repetition, in a new process where the arm wants one; the last one is followed by the other questions."""
        if self.process is None:
            self._prepare()
        done, seconds = 0, 0.0
        while done < self.least or seconds < ENOUGH * self.task.rep_seconds * self.scale:
            if done:  # the warm-up took these rounds to be slower than they are
                lacking = self.task.rep_seconds * self.scale - seconds
                self.count = max(1, self.least - done, round(lacking * done / seconds))
            answer = self._ask(do="rounds", count=self.count)
            done, seconds = done + answer["rounds"], seconds + answer["seconds"]
            if seconds * self.repetitions > CELL_S:
                break
        repetition = {"rounds": done, "seconds": seconds, "load": round(os.getloadavg()[0], 2)}
        self.found["repetitions"].append({**repetition, "at": round(time.time(), 1)})
        if len(self.found["repetitions"]) >= self.repetitions:
            self._finish()
            self.end()
        elif self.arm.anew:
            self.end()

    def _told(self, name: str, value: float) -> None:
        """The median over the processes so far."""
        every = self.found.setdefault("each", {}).setdefault(name, [])
        every.append(value)
        self.found[name] = statistics.median(every)

    def _finish(self) -> None:
        self.found |= self._ask(do="facts")
        wanted = self.task.accuracy_rounds
        if wanted is not None:
            each = min(r["seconds"] / r["rounds"] for r in self.found["repetitions"])
            rounds = min(wanted, max(2, int(ACCURACY_S / each)))
            answer = self._ask(do="accuracy", rounds=rounds)
            self.found |= {"accuracy": answer["accuracy"], "accuracy_rounds": answer["rounds"]}

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self.process is not None
        return self.process.ask(ANSWER_S, **question)


def share(each_s: float, rep_s: float, *, least: int, repetitions: int, cell_s: float) -> tuple[int, int]:
    """(rounds per repetition, repetitions) for an arm whose round takes `each_s`.

    A repetition aims at `rep_s`, with `least` rounds at least; where all of them together would take longer than
    `cell_s`, there are fewer, but two rounds in all at least.
    """
    count = max(least, round(rep_s / max(each_s, 1e-6)), 1)
    if count * repetitions * each_s > cell_s and count > least:
        count = max(least, int(cell_s / repetitions / each_s))
    affordable = int(cell_s / (count * each_s))
    return count, max(min(repetitions, affordable), 2 if count == 1 else 1)


def python(kind: str) -> Path:
    """The interpreter of an arm's environment."""
    name = "fedopt" if kind == "plain" else kind
    given = os.environ.get(f"BENCH_PYTHON_{name.upper()}")
    path = Path(given) if given else VENVS / name / "bin" / "python"
    if not path.exists():
        raise SystemExit(f"{path} is absent: make the environments with `bench/venvs.sh`, or name an interpreter in"
                         f" BENCH_PYTHON_{name.upper()}")  # fmt: skip
    return path


def measure(pairs: Sequence[tuple[Task, Arm]], sitting: str, scale: float) -> Iterator[dict[str, Any]]:
    """All cells of the tasks that take turns with each other."""
    group = []
    for task in dict.fromkeys(task for task, _ in pairs):
        try:
            tasks.make(task.name)
        except Exception as error:  # no file of the data, say; the other tasks do not need it
            _say(f"  [red]{task.title} is left out: {error}[/red]")
            continue
        loaded = tasks.load(task.name)
        sizes = {"cohort": loaded.cohort, "clients": loaded.clients, "parameters": loaded.parameters}
        for arm in (arm for other, arm in pairs if other == task):
            cell = Cell(task, arm, sitting, scale)
            cell.found |= {**sizes, "real_data": loaded.real}
            group.append(cell)
        del loaded
    together = [cell for cell in group if not cell.arm.alone]
    for part in (together, *([cell] for cell in group if cell.arm.alone)):
        try:
            for cell in part:
                if not cell.arm.anew:
                    _attempt(cell, "prepare")
            for turn in range(REPETITIONS):
                # forwards and backwards: whoever comes late in one turn comes early in the next
                for cell in part if turn % 2 == 0 else reversed(part):
                    if cell.waits:
                        _attempt(cell, "repeat", f", {turn + 1} of {REPETITIONS}")
        finally:
            for cell in part:
                cell.end()
        for cell in part:
            yield cell.found


def _attempt(cell: Cell, step: str, more: str = "") -> None:
    with console.status(f"{cell.task.title}: {cell.arm.title}, {step}{more}"):
        cell.attempt(step)


def main() -> None:
    """Measure what is not measured, one task after another, and write the page."""
    given = _arguments()
    description = machine.describe()
    folder = RESULTS / machine.identity(description)
    folder.mkdir(parents=True, exist_ok=True)
    sitting = time.strftime("%Y-%m-%d %H:%M")
    wanted = [
        (task, arm)
        for task, arm in cells(description["cores"], quick=given.quick)
        if (not given.task or task.name in given.task) and (not given.arm or arm.name in given.arm)
    ]
    scale = 0.5 if given.quick and given.scale is None else given.scale or 1.0
    open_cells = [(t, a) for t, a in wanted if given.again or not _done(folder / f"{t.name}.{a.name}.json")]
    _say(f"{len(wanted)} cells, {len(wanted) - len(open_cells)} of them measured already; results in {folder.name}")
    if open_cells:
        _say("the machine's ceilings: matrix products and copies")
        _store(folder / "machine.json", {**description, "sitting": sitting, "limits": machine.limits()})
    started = time.monotonic()
    for turns in dict.fromkeys(task.turns for task, _ in open_cells):
        pairs = [(task, arm) for task, arm in open_cells if task.turns == turns]
        titles = ", ".join(dict.fromkeys(task.title for task, _ in pairs))
        _say(f"[bold]{titles}[/bold] ({len(pairs)} cells, {(time.monotonic() - started) / 60:.0f} min so far)")
        for cell in measure(pairs, sitting, scale):
            _store(folder / f"{cell['task']}.{cell['arm']}.json", cell)
            _report(cell)
    if not given.no_page:
        from bench import table

        table.main([])


def _report(cell: dict[str, Any]) -> None:
    if cell["failed"]:
        _say(f"  [red]{cell['title']}: {cell['failed']}[/red]")
        return
    stored = Stored(cell)
    _say(
        f"  {stored.title:<34} {stored.rate:10,.0f} updates/s  ({min(stored.rates):,.0f} to {max(stored.rates):,.0f}),"
        f" start {cell['startup_s']:.1f} s, {cell['peak_memory_bytes'] / 2**20:,.0f} MB"
    )


def _done(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["failed"] is None


def store(name: str, value: dict[str, Any]) -> Path:
    """A measurement into the folder of this machine."""
    folder = RESULTS / machine.identity(machine.describe())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    _store(path, value)
    return path


def _store(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _arguments() -> argparse.Namespace:
    known = sorted({arm.name for arm in arms(machine.cores())})
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="the small tasks alone, with shorter repetitions")
    arguments.add_argument("--task", nargs="*", choices=list(tasks.TASKS), help="these tasks alone")
    arguments.add_argument("--arm", nargs="*", choices=known, help="these arms alone")
    arguments.add_argument("--again", action="store_true", help="measure cells that have a result once more")
    arguments.add_argument("--scale", type=float, help="length of the repetitions, 1.0 by default")
    arguments.add_argument("--no-page", action="store_true", help="do not write docs/performance.md")
    return arguments.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
