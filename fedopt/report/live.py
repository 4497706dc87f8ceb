"""The terminal view of a run: a panel that is redrawn, or plain lines where nobody watches."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedopt.report import record as run
from fedopt.report import units
from fedopt.report.record import METRICS, Line, RunRecord
from fedopt.types import WireError
from fedopt.wire.tail import About, Away, Happening, Links, Over, Recorded

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_EVERY = 2.0
"""Seconds between two lines where the output is no terminal."""
CURVE = 400
"""How many of the newest values the small curve keeps."""
REASON = 200
"""How many characters of a reason are shown."""
PRESENT = ("idle", "working")
"""States of clients that are where they should be."""


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, from the lowest to the highest block."""
    if not values or width < 1:
        return ""
    pieces = min(width, len(values))
    means = []
    for i in range(pieces):
        piece = values[i * len(values) // pieces : (i + 1) * len(values) // pieces]
        means.append(sum(piece) / len(piece))
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[3] * pieces
    return "".join(BLOCKS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)


class LiveView:
    """Shows a run while it goes on; `update` takes each line of its record.

    planned_rounds: rounds that are planned; 0 where nobody knows.
    title: what runs.
    console: where to write; where it is no terminal, evaluations are printed as lines, one in `PLAIN_EVERY` seconds.
    clock: seconds; those of the run, where it is watched from somewhere else.
    attackers: the clients that attack, if anybody knows.

    A line may lack anything or hold something else than expected: a view is no reason to lose a run.
    """

    def __init__(
        self,
        planned_rounds: int,
        title: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        attackers: Iterable[int] = (),
    ) -> None:
        self.planned = planned_rounds
        self.attackers = frozenset(attackers)
        self.title = title
        self.console = console or Console()
        self._clock = clock
        self._live: Live | None = None
        self._began = self._printed = clock()
        self._first_round: int | None = None
        self._round = 0
        self._last: Line = {}
        self._metric: str | None = None
        self._values: deque[float] = deque(maxlen=CURVE)
        self._best: run.Mark | None = None
        self._loss: float | None = None
        self._asked = self._answered = self._rejected = self._updates = 0
        self._up = self._down = 0
        self._evaluated = 0
        self._unprinted = False
        self._cohort: tuple[int, int] | None = None
        self._on_attackers: float | None = None
        self._kept = 0
        self._kept_last: tuple[int, str] | None = None
        self._backdoors: dict[str, float] = {}
        self._spent: float | None = None
        self._links = self._absent = self._away = ""

    def __enter__(self) -> LiveView:
        self._began = self._clock()
        # the first evaluation is printed at once
        self._printed = self._began - PLAIN_EVERY
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True)
            self._live.start(refresh=True)
        else:
            self._print_title()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._unprinted:
            self._print()

    def describe(self, planned_rounds: int, title: str, attackers: Iterable[int] = ()) -> None:
        """What runs, where that is known after the view began."""
        self.planned, self.attackers = planned_rounds, frozenset(attackers)
        if title != self.title:
            self.title = title
            if self._live is None:
                self._print_title()

    def update(self, line: Line) -> None:
        """Take in one line of the record."""
        if self.recall(line) and self._live is None and self._clock() - self._printed >= PLAIN_EVERY:
            self._print()

    def linked(self, states: Mapping[str, tuple[int, Sequence[int]]]) -> None:
        """What clients do: how many are in each state, and the numbers of some of them."""
        words = {name: _state(name, *state) for name, state in states.items() if state[0]}
        self._links = ", ".join(words.values())
        absent = ", ".join(text for name, text in words.items() if name not in PRESENT)
        if absent != self._absent and self._live is None:
            self._say(f"clients: {self._links}")
        self._absent = absent

    def away(self, reason: str) -> None:
        """Nothing is heard of the run, and why; an empty reason: it is heard again."""
        if bool(reason) != bool(self._away) and self._live is None:
            self._say(f"the server is away, and looked for: {reason}" if reason else "the server is back")
        self._away = reason

    def recall(self, line: Line) -> bool:
        """Take in a line of before the view began, which is not printed; True if it holds a measure to print."""
        if not isinstance(line, dict):
            return False
        self._last = line
        self._round = max(self._round, int(run.at(line, "round") or 0))
        if self._first_round is None:
            # a resumed run starts somewhere in the middle, and its rate is that of this part
            self._first_round = max(0, self._round - 1)
        self._asked += int(run.at(line, "asked") or 0)
        self._answered += int(run.at(line, "answered") or 0)
        self._rejected += _length(line.get("rejected"))
        self._updates += _length(line.get("clients"))
        self._up += int(run.at(line, "bytes_up") or 0)
        self._down += int(run.at(line, "bytes_down") or 0)
        loss = next(
            (v for name in ("loss", "client_eval.loss", "train_loss") if (v := run.at(line, name)) is not None), None
        )
        self._loss = self._loss if loss is None else loss
        self._note_trust(line)
        evaluated = self._measure(line)
        self._unprinted |= evaluated
        return evaluated

    def _note_trust(self, line: Line) -> None:
        """Note what the line says of attackers, of a model that was kept, of backdoors and privacy."""
        answered = line.get("clients")
        if self.attackers and isinstance(answered, list) and answered:
            self._cohort = (sum(isinstance(c, int) and c in self.attackers for c in answered), len(answered))
        if weights := run.weights(line):
            self._on_attackers = sum(weight for client, weight in weights.items() if client in self.attackers)
        why = run.kept_reason(line)
        if why is not None:
            # both exchanges of a round may say so
            self._kept += self._kept_last is None or self._kept_last[0] != self._round
            self._kept_last = (self._round, why)
        found = line.get("backdoor")
        if isinstance(found, dict):
            rates = {str(name): run.number(rate) for name, rate in found.items()}
            self._backdoors |= {name: rate for name, rate in rates.items() if rate is not None}
        spent = run.at(line, "info.epsilon")
        self._spent = self._spent if spent is None else spent

    def _measure(self, line: Line) -> bool:
        """Note the measure that matters; True if the line holds it."""
        names = list(METRICS)
        found = next((name for name in names if run.at(line, name) is not None), None)
        if found is None:
            return False
        if self._metric is None or names.index(found) < names.index(self._metric):
            # a better measure than the one so far, as at the first evaluation after rounds with a training loss only
            self._metric, self._best = found, None
            self._values.clear()
        value = run.at(line, self._metric)
        if value is None:
            return False
        self._values.append(value)
        self._evaluated = self._round
        if self._best is None or (value > self._best.value if METRICS[self._metric] else value < self._best.value):
            self._best = run.Mark(value, self._round)
        return True

    @property
    def rate(self) -> float:
        """Client updates per second since the view began."""
        return self._updates / max(1e-9, self._clock() - self._began)

    def time_left(self) -> float | None:
        """Seconds until the planned rounds are done at the pace so far; None before one can say."""
        done = self._round - (self._first_round or 0)
        if not self.planned or done < 1:
            return None
        return max(0.0, (self._clock() - self._began) / done * (self.planned - self._round))

    def render(self) -> RenderableType:
        """The panel as it stands."""
        width = max(20, min(self.console.width, 100))
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        left = self.time_left()
        passed = units.duration(self._clock() - self._began)
        bar.add_row(
            f"round {self._round}" + (f" of {self.planned}" if self.planned else ""),
            ProgressBar(total=self.planned or None, completed=min(self._round, self.planned), pulse=not self.planned),
            f"{passed}" if left is None else f"{passed}, {units.duration(left)} left",
        )
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        if self._metric is not None and self._values:
            now = Text(units.measure(self._metric, self._values[-1]), style="bold")
            if self._best:
                now.append(
                    f"  best {units.measure(self._metric, self._best.value)} in round {self._best.round}",
                    style="not bold",
                )
            facts.add_row(units.label(self._metric), now)
            facts.add_row("", Text(sparkline(list(self._values), width - 30), style="cyan"))
        if self._loss is not None and self._metric not in ("loss", "train_loss"):
            facts.add_row("loss", f"{self._loss:.4g}")
        asked = _whole(self._last.get("asked"))
        facts.add_row(
            "clients",
            f"{asked} asked, {_whole(self._last.get('answered'))} answered, "
            f"{_length(self._last.get('rejected'))} rejected",
        )
        silent = f", {units.count(self._rejected)} rejected" if self._rejected else ""
        facts.add_row("so far", f"{units.count(self._updates)} updates{silent}, {_rate(self.rate)}")
        if self._cohort is not None:
            weight = "" if self._on_attackers is None else f", {units.percent(self._on_attackers)} of the weight"
            facts.add_row("attackers", f"{self._cohort[0]} of {self._cohort[1]} answers{weight}")
        if self._backdoors:
            facts.add_row("backdoor", Text(_rates(self._backdoors)))
        if self._kept_last is not None:
            facts.add_row("model kept", Text(_kept(self._kept, *self._kept_last)))
        if self._spent is not None:
            facts.add_row("privacy", f"ε = {self._spent:.4g}")
        facts.add_row("bytes", f"{units.nbytes(self._up)} up, {units.nbytes(self._down)} down")
        if self._links:
            facts.add_row("link", Text(self._links))
        if self._away:
            facts.add_row("server", Text(f"away, and looked for: {self._away[:REASON]}", style="yellow"))
        return Panel(
            Group(bar, facts), title=Text(self.title), title_align="left", width=width, box=box.ROUNDED, padding=(0, 1)
        )

    def _print(self) -> None:
        self._printed, self._unprinted = self._clock(), False
        words = [f"round {self._evaluated}" + (f"/{self.planned}" if self.planned else "")]
        if self._metric is not None and self._values:
            words.append(f"{units.label(self._metric)} {units.measure(self._metric, self._values[-1])}")
        if self._loss is not None and self._metric not in ("loss", "train_loss"):
            words.append(f"loss {self._loss:.4g}")
        if self._rejected:
            words.append(f"{units.count(self._rejected)} rejected")
        if self._cohort is not None and self._on_attackers is not None:
            words.append(f"{units.percent(self._on_attackers)} of the weight on attackers")
        if self._kept:
            words.append(f"model kept in {_rounds(self._kept)}")
        words += [f"{units.nbytes(self._up)} up", _rate(self.rate)]
        left = self.time_left()
        if left:
            words.append(f"{units.duration(left)} left")
        self._say(", ".join(words))

    def _print_title(self) -> None:
        self._say(f"{self.title}, {self.planned} rounds" if self.planned else self.title)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def watch(
    happenings: Iterable[Happening],
    place: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Over:
    """Show a run by what is told of it, as the process that runs it would, until it is over; how it ended.

    place: where it runs, for the title while nothing is known of it. Time is that of the record, so that somebody who
    comes late sees the pace of the whole run. At the end the summary is printed, if anything was told of the run.

    Raises WireError for a line that is none.
    """
    console = console or Console()
    told: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    passed, heard = 0.0, clock()

    def now() -> float:
        return passed + clock() - heard

    def begin() -> LiveView:
        return stack.enter_context(LiveView(_planned(told), _title(told, place), console, now, _attackers(told)))

    with contextlib.ExitStack() as stack:
        view = begin()
        for it in happenings:
            if not isinstance(it, Away | Over):
                view.away("")
            match it:
                case About(facts, after):
                    told = plain(facts)
                    if after < len(lines):  # the run went on from a checkpoint before them
                        stack.close()
                        lines.clear()
                        passed, heard = 0.0, clock()
                        view = begin()
                    view.describe(_planned(told), _title(told, place), _attackers(told))
                case Recorded(_, text, more):
                    lines.append(_line(text))
                    elapsed = run.at(lines[-1], "elapsed")
                    if elapsed is not None:
                        passed, heard = elapsed, clock()
                    (view.recall if more else view.update)(lines[-1])
                case Links(states):
                    view.linked(plain(states))
                case Away(reason):
                    view.away(plain(reason) or "no reason was given")
                case Over(status, reason):
                    over = Over(plain(status), plain(reason))
                    break
        else:
            over = Over("lost", "nothing more is told of it")
    if told:
        info = told | {"status": over.status, "reason": over.reason}
        console.print(summary(RunRecord({}, info, {}, lines, Path(str(told.get("folder") or place)))))
    return over


def plain(value: Any) -> Any:
    """The same document without characters that move the cursor or do other things to a terminal."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else " " for c in value)
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def _line(text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
        int(line["exchange"]), int(line["round"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"a line of a run's record is needed, {text[:60]!r} was given ({error})") from None
    found: dict[str, Any] = plain(line)
    return found


def _planned(told: Mapping[str, Any]) -> int:
    return int(run.number(told.get("rounds")) or 0)


def _attackers(told: Mapping[str, Any]) -> list[int]:
    found = told.get("attackers")
    return [client for client in found if isinstance(client, int)] if isinstance(found, list) else []


def _title(told: Mapping[str, Any], place: str) -> str:
    """As `fedopt run` has it."""
    if not told:
        return f"{place}: waiting for the run to begin"
    words = [f"{told.get('name')}: {told.get('strategy')}"]
    words += [f"on {told['data']}"] if "data" in told else []
    return " ".join(words) + (f", {told['clients']} clients" if "clients" in told else "")


def _state(name: str, clients: int, first: Sequence[int]) -> str:
    """`2 away (3, 7)`; who is there is not named."""
    words = f"{clients} {name.replace('_', ' ')}"
    if name in PRESENT or not first:
        return words
    more = ", ..." if clients > len(first) else ""
    return f"{words} ({', '.join(map(str, first))}{more})"


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else 0


def _rounds(count: int) -> str:
    return f"{units.count(count)} round" + ("s" if count != 1 else "")


def _kept(count: int, last: int, why: str) -> str:
    when = f"{_rounds(count)}, last in round {last}" if count > 1 else f"round {last}"
    return f"in {when}" + (f": {why[:REASON]}" if why else "")


def _rates(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {units.measure('backdoor', rate)}" for name, rate in found.items())


def _whole(value: Any) -> str:
    found = run.number(value)
    return "–" if found is None else units.count(found)


def _rate(rate: float) -> str:
    return f"{units.count(rate) if rate >= 10 else f'{rate:.1f}'} updates/s"


def summary(record: RunRecord) -> Panel:
    """What a run came to, as a panel to print at its end."""
    sums, name = run.totals(record), run.headline(record)
    final, best = run.final(record), run.best(record)
    status = str(record.info.get("status") or "unknown")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    if name and final and best:
        curve = run.series(record, name).y
        facts.add_row(
            units.label(name),
            Text.assemble(
                (units.measure(name, final.value), "bold"),
                f"  best {units.measure(name, best.value)} in round {best.round}",
            ),
        )
        facts.add_row("", Text(sparkline(curve, 40), style="cyan"))
    marks = {name: run.final(record, f"backdoor.{name}") for name in run.fields(record, "backdoor")}
    if rates := {name: mark.value for name, mark in marks.items() if mark}:
        facts.add_row("backdoor", Text(_rates(rates)))
    planned = run.number(record.info.get("rounds"))
    facts.add_row("rounds", units.count(sums.rounds) + (f" of {units.count(planned)}" if planned else ""))
    if kept := run.kept(record):
        facts.add_row("model kept", Text(_kept(len(kept), max(kept), kept[max(kept)])))
    rate = f", {_rate(sums.updates / sums.seconds)}" if sums.seconds else ""
    facts.add_row("time", f"{units.duration(sums.seconds)}{rate}")
    facts.add_row("bytes", f"{units.nbytes(sums.bytes_up)} up, {units.nbytes(sums.bytes_down)} down")
    unheard = f", {units.count(sums.rejected)} answers rejected" if sums.rejected else ""
    facts.add_row("clients", f"{units.count(sums.updates)} updates{unheard}")
    if record.info.get("reason"):
        facts.add_row("reason", Text(str(record.info["reason"])))
    facts.add_row("folder", Text(str(record.path)))
    title = Text.assemble((record.name, "bold"), f" {status}")
    border = "green" if status == "finished" else "red" if status in ("failed", "interrupted") else "yellow"
    return Panel(facts, title=title, title_align="left", border_style=border, expand=False, padding=(0, 1))
