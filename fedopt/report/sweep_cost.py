"""What cells of a sweep came to beside what they cost: client updates and bytes.

A group *dominates* another one of the same panel and column if it cost fewer updates and its mean is better by more
than the standard error of the difference, √((s² + s'²) / n) for n seeds.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from fedopt.report import units
from fedopt.report.compare import spread
from fedopt.report.sweep import Group, Panel, Results

ALIKE = 0.01
"""Costs that differ by less, relatively, are no reason for a picture."""


class Point(NamedTuple):
    """A group that is finished, with its mean costs."""

    row: str
    column: str
    group: Group
    updates: float
    bytes_up: float
    mean: float
    deviation: float
    seeds: int


def points(found: Results, panel: Panel) -> list[Point]:
    """The finished groups of a panel whose cost is known, row by row."""
    known = []
    for row in found.rows:
        for column in found.columns:
            group = panel.cells.get((row, column))
            if group is None or group.mean is None or not all(cell.get("updates") for cell in group.cells):
                continue
            _, deviation = spread(group.values) or (0.0, 0.0)
            updates, sent = (statistics.fmean(float(c[name]) for c in group.cells) for name in ("updates", "bytes_up"))
            known.append(Point(row, column, group, updates, sent, group.mean, deviation, len(group.cells)))
    return known


def dominating(found: Results, point: Point, others: list[Point]) -> list[str]:
    """The rows that dominate a point in its column, the cheapest first."""

    def better(other: Point) -> bool:
        error = math.sqrt((point.deviation**2 + other.deviation**2) / max(point.seeds, 1))
        gain = other.mean - point.mean if found.up else point.mean - other.mean
        return other.column == point.column and other.updates < point.updates and gain > error

    return [other.row for other in sorted(others, key=lambda p: p.updates) if better(other)]


def varies(found: Results) -> bool:
    """Whether groups that are compared cost differently."""
    for panel in found.panels:
        for column in found.columns:
            costs = [p.updates for p in points(found, panel) if p.column == column]
            if costs and max(costs) > (1 + ALIKE) * min(costs):
                return True
    return False


def picture(found: Results, panel: Panel) -> dict[str, Any]:
    """Points of a panel, a trace for each column: the measure against updates, and against bytes."""
    every = points(found, panel)
    return {
        "share": units.is_share(found.metric),
        "measure": units.label(found.metric),
        "traces": [
            {
                "name": column,
                "rows": [p.row for p in own],
                "updates": [p.updates for p in own],
                "bytes": [p.bytes_up for p in own],
                "y": [p.mean for p in own],
                "error": [p.deviation / math.sqrt(p.seeds) for p in own],
            }
            for column in found.columns
            if (own := [p for p in every if p.column == column])
        ],
    }


def table(found: Results) -> dict[str, Any]:
    """A row for each point: costs, measure, and what dominates it."""
    rows: list[list[Any]] = []
    for panel in found.panels:
        every = points(found, panel)
        for p in sorted(every, key=lambda p: (found.columns.index(p.column), p.updates)):
            rows.append(
                [
                    *([panel.title] if len(found.panels) > 1 else []),
                    *([p.column] if found.columns_axis else []),
                    p.row,
                    [p.updates, units.count(round(p.updates))],
                    [p.bytes_up, units.nbytes(p.bytes_up)],
                    [p.mean, found.shown(p.group, unit=True)],
                    ", ".join(dominating(found, p, every)),
                ]
            )
    heads = [*(["panel"] if len(found.panels) > 1 else []), *([found.columns_axis] if found.columns_axis else [])]
    columns = [{"name": name} for name in [*heads, found.rows_axis]]
    columns += [{"name": name, "right": True} for name in ("client updates", "bytes up", units.label(found.metric))]
    hint = "cheaper, and better by more than the standard error of the difference"
    return {"columns": [*columns, {"name": "dominated by", "hint": hint}], "rows": rows}
