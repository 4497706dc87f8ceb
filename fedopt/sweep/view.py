"""The terminal view of a sweep: cells done, cells running, time left; plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedopt.report import units


class _Running:
    """A cell in hand."""

    def __init__(self, label: str, rounds: int) -> None:
        self.label = label
        self.rounds = rounds
        self.round = 0
        self.first: int | None = None
        """The round before the first one that was told of: a resumed cell starts somewhere in the middle."""


class SweepView:
    """Shows a sweep while it goes on.

    title: what runs.
    finished, total: cells that are done already, and all of them.
    rounds: rounds of the cells that are still to run, for the time left.
    console: where to show it; nowhere without one.
    """

    def __init__(
        self,
        title: str,
        finished: int,
        total: int,
        rounds: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.console = console
        self.done = finished
        self.total = total
        self._clock = clock
        self._began = clock()
        self._left = rounds
        self._rounds_done = 0
        self._running: dict[int, _Running] = {}
        self._counts: dict[str, int] = {}
        self._live: Live | None = None

    def __enter__(self) -> SweepView:
        self._began = self._clock()
        said = f"{self.title}: {self.total} cells"
        if self.console is not None and self.console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start(refresh=True)
        else:
            self.say(f"{said}, {self.done} finished already" if self.done else said)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, slot: int, label: str, rounds: int) -> None:
        """A process takes up a cell."""
        self._running[slot] = _Running(label, rounds)

    def advance(self, slot: int, done: int) -> None:
        """The cell of a process has done so many rounds."""
        cell = self._running[slot]
        if cell.first is None:
            cell.first = max(0, done - 1)
            self._left -= cell.first
        self._rounds_done += done - max(cell.round, cell.first)
        self._left -= done - max(cell.round, cell.first)
        cell.round = done

    def put_back(self, slot: int) -> None:
        """The cell of a process is run elsewhere."""
        self._running.pop(slot, None)

    def end(self, slot: int, state: str, said: str) -> None:
        """The cell of a process is over; `said` is what it came to."""
        cell = self._running.pop(slot)
        self._left -= cell.rounds - cell.round
        if state == "finished":
            self._rounds_done += cell.rounds - max(cell.round, cell.first or 0)
        self._counts[state] = self._counts.get(state, 0) + 1
        if state != "interrupted":
            self.done += 1
        if state in ("refused", "failed") or self._live is None:
            left = self.time_left()
            more = f", {units.duration(left)} left" if left and self._live is None else ""
            self.say(f"{self.done}/{self.total}  {cell.label}: {said}{more}")

    def say(self, text: str) -> None:
        """A line for the user, whatever else is shown."""
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def time_left(self) -> float | None:
        """Seconds until all cells are done at the pace so far; None before one can say."""
        if not self._rounds_done:
            return None
        return max(0.0, (self._clock() - self._began) / self._rounds_done * self._left)

    def render(self) -> RenderableType:
        """The panel as it stands."""
        left, passed = self.time_left(), units.duration(self._clock() - self._began)
        bar = _bars()
        bar.add_row(
            f"{self.done} of {self.total} cells",
            ProgressBar(total=max(1, self.total), completed=self.done),
            passed if left is None else f"{passed}, {units.duration(left)} left",
        )
        cells = _bars()
        for cell in self._running.values():
            label = Text(cell.label, overflow="ellipsis", no_wrap=True)
            bars = ProgressBar(total=cell.rounds, completed=cell.round)
            cells.add_row(label, bars, f"round {cell.round} of {cell.rounds}")
        counts = ", ".join(f"{count} {state}" for state, count in self._counts.items() if state != "finished")
        rows: list[RenderableType] = [bar, cells, *([Text(counts, style="yellow")] if counts else [])]
        width = max(20, min(self.console.width if self.console else 80, 100))
        title = Text(self.title)
        return Panel(Group(*rows), title=title, title_align="left", width=width, box=box.ROUNDED, padding=(0, 1))


def _bars() -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True, ratio=3)
    table.add_column(ratio=2)
    table.add_column(no_wrap=True, justify="right", ratio=2)
    return table
