"""The cells of a sweep as lines of a CSV, which is kept, and back; so tables and pictures need no runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedopt.report import record
from fedopt.report.sweep import Results, measured, rows_of
from fedopt.sweep import Sweep

Line = Mapping[str, Any]
COUNTS = ("updates", "bytes_up", "bytes_down")


def lines(found: Results, folder: Path, beside: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A line for each cell and seed, with what its run says of the measures `beside`."""
    told: list[dict[str, Any]] = [dict(line) for line in csv.DictReader(io.StringIO(rows_of(found)))]
    for line in told:
        for measure in beside:
            value = None
            if line["state"] == "finished":
                run = record.read(folder / line["folder"])
                value, _ = measured(run.lines, measure, found.document["at"])
            line[measure] = "" if value is None else value
    return told


def text(told: Sequence[Line]) -> str:
    """Lines as CSV."""
    into = io.StringIO()
    writer = csv.DictWriter(into, list(told[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    return into.getvalue()


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV; none where there is no such file."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []


def results(plan: Sweep, stored: Iterable[Line], metric: str | None = None) -> Results:
    """The sweep as its config says it should be, with the figures that are stored; `metric` in place of its own.

    Cells that are not among the lines have not been run.
    """
    metric = metric or plan.metric
    by = {(*(line[axis] for axis in plan.axes), int(line["seed"])): line for line in stored}
    cells = []
    for cell in plan.cells:
        line = by.get((*(cell.settings[axis] for axis in plan.axes), cell.seed), {})
        cells.append(
            {
                "settings": cell.settings,
                "seed": cell.seed,
                "key": cell.key,
                "clean": not cell.config.attack,
                "state": line.get("state") or "waiting",
                "message": line.get("message", ""),
                "value": float(line[metric]) if line.get(metric) else None,
                **{name: int(line.get(name) or 0) for name in COUNTS},
            }
        )
    axes = {axis: list(settings) for axis, settings in plan.axes.items()}
    return Results(
        {
            "name": plan.name,
            "metric": metric,
            "at": plan.at,
            "axes": axes,
            "rows": plan.rows,
            "columns": plan.columns,
            "seeds": list(plan.seeds),
            "cells": cells,
        }
    )
