"""Virtual time until an accuracy is reached, from the record of runs on a virtual clock.

The level of a run at an evaluation is the mean of its last few evaluations, that one included, as the sweep itself
takes it at the end; one evaluation alone would favour whoever is evaluated more often. The level to be reached is, seed
by seed, the one at which the strategy that waits for everybody ends.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedopt.report import record
from fedopt.report.record import at as number_at
from fedopt.report.sweep import Results, measured

Line = Mapping[str, Any]


class Moment(NamedTuple):
    """Where a run stands at an evaluation."""

    clock: float
    """Virtual seconds since the start."""
    updates: int
    level: float


def moments(lines: Iterable[Line], metric: str, over: int) -> list[Moment]:
    """From the first evaluation on that has `over` - 1 others before it."""
    found: list[Moment] = []
    values: list[float] = []
    updates = 0
    for line in lines:
        updates += len(line.get("clients") or ())
        value, clock = number_at(line, metric), number_at(line, "info.clock")
        if value is None or clock is None:
            continue
        values.append(value)
        if len(values) >= over:
            found.append(Moment(clock, updates, statistics.fmean(values[-over:])))
    return found


def reached(found: Sequence[Moment], level: float) -> Moment | None:
    """The first moment at this level, or above it; None if there is none."""
    return next((moment for moment in found if moment.level >= level), None)


def lines(found: Results, folder: Path, waiting: str) -> list[dict[str, Any]]:
    """A line for each strategy and seed: where it ended, and when it was where the one that waits ended."""
    runs = {
        (cell["settings"][found.rows_axis], cell["seed"]): record.read(folder / cell["folder"]).lines
        for cell in found.document["cells"]
        if cell["state"] == "finished"
    }
    over = int(found.document["at"])
    told = []
    for cell in found.document["cells"]:
        name, seed = cell["settings"][found.rows_axis], cell["seed"]
        own, standard = runs.get((name, seed)), runs.get((waiting, seed))
        target = None if standard is None else measured(standard, found.metric, over)[0]
        every = [] if own is None else moments(own, found.metric, over)
        there = None if target is None else reached(every, target)
        line = {
            "strategy": name,
            "seed": seed,
            "state": cell["state"],
            found.metric: cell["value"],
            "updates": every[-1].updates if every else None,
            "clock": every[-1].clock if every else None,
            "target": target,
            "reached_updates": there.updates if there else None,
            "reached_clock": there.clock if there else None,
        }
        told.append({key: "" if value is None else value for key, value in line.items()})
    return told
