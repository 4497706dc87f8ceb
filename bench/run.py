"""Measures the cells of the tables that are not measured yet, and then writes docs/performance.md.

    python -m bench.run [--quick] [--task mlp-100 ...] [--arm pfl ...] [--again] [--scale 1.0]

All arms of a task are started, warmed up and then take turns, repetition by repetition, so that a change of the
machine's speed meets all of them (Flower's simulation, which keeps polling, has its turns alone afterwards). Every
repetition is stored, one file per cell; a cell that has a file is skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
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
ACCURACY_S = 15.0

console = Console()


class Cell:
    """An arm on a task: the live process and what has been measured of it."""

    def __init__(self, task: Task, arm: Arm, sitting: str, scale: float) -> None:
        self.task, self.arm, self.scale = task, arm, scale
        self.process: Process | None = None
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
        if self.found["failed"] is not None or (step != "start" and self.process is None):
            return
        try:
            getattr(self, f"_{step}")()
        except ArmFailed as failure:
            self.found["failed"] = f"{step}: {failure}"
            self.end()

    def end(self) -> None:
        if self.process is not None:
            self.found["peak_memory_bytes"] = self.process.peak
            self.process.end()
            self.process = None

    def _start(self) -> None:
        command = [str(python(self.arm.kind)), "-m", f"bench.arms.{self.arm.kind}", self.task.name]
        self.process = Process([*command, *self.arm.arguments], environment(self.arm.threads), STARTUP_S)
        self.found["startup_s"] = self.process.startup_s

    def _warm(self) -> None:
        """The first round, then rounds until they take the same time, and the choice of `auto`."""
        self.found["first_round_s"] = self._ask(do="rounds", count=1)["seconds"]
        if self.arm.name == "fedopt-auto":
            self.found["settling_s"] = self._ask(do="settle")["seconds"]
        second = self._ask(do="rounds", count=1)["seconds"]
        budget = 0.5 * self.task.rep_seconds * self.scale
        more = min(20, int(budget / max(second, 1e-4)))
        each = self._ask(do="rounds", count=more)["seconds"] / more if more else second
        self.found["warmup_rounds"] = 2 + more
        least = self.task.auto_rounds if self.arm.name == "fedopt-auto" else 1
        self.count, self.repetitions = share(
            each, self.task.rep_seconds * self.scale, least=least, repetitions=REPETITIONS, cell_s=CELL_S
        )

    def _repeat(self) -> None:
        if len(self.found["repetitions"]) < self.repetitions:
            answer = self._ask(do="rounds", count=self.count)
            load = os.getloadavg()[0]
            self.found["repetitions"].append({**answer, "load": round(load, 2), "at": round(time.time(), 1)})

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


def measure(task: Task, chosen: Iterable[Arm], sitting: str, scale: float) -> Iterator[dict[str, Any]]:
    """All cells of one task, taking turns."""
    try:
        tasks.make(task.name)
    except Exception as error:  # no file of the data, say; the other tasks do not need it
        _say(f"  [red]left out: {error}[/red]")
        return
    group = [Cell(task, arm, sitting, scale) for arm in chosen]
    loaded = tasks.load(task.name)
    for cell in group:
        cell.found |= {"cohort": loaded.cohort, "clients": loaded.clients, "parameters": loaded.parameters}
        cell.found["real_data"] = loaded.real
    del loaded
    together = [cell for cell in group if not cell.arm.alone]
    for part in (together, *([cell] for cell in group if cell.arm.alone)):
        try:
            for step in ("start", "warm", *["repeat"] * REPETITIONS, "finish"):
                with console.status("") as status:
                    for cell in part:
                        status.update(f"{task.name}: {cell.arm.title}, {step}")
                        cell.attempt(step)
                        if step == "warm" and cell.found["failed"] is None:
                            _say(f"  {cell.arm.title}: {cell.count} rounds, {cell.repetitions} times")
        finally:
            for cell in part:
                cell.end()
        for cell in part:
            yield cell.found


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
    for name in dict.fromkeys(task.name for task, _ in open_cells):
        task, chosen = tasks.TASKS[name], [arm for t, arm in open_cells if t.name == name]
        _say(f"[bold]{task.title}[/bold] ({len(chosen)} arms, {(time.monotonic() - started) / 60:.0f} min so far)")
        for cell in measure(task, chosen, sitting, scale):
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
