"""What was found, in Markdown; what is not stored is said to be not measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.participation.studies import STRATEGIES, WAITING, Study, label
from bench.table import rows
from fedopt.report import units
from fedopt.report.sweep import Results
from fedopt.report.sweep_cost import Point, dominating, points

NOT_MEASURED = "not measured"
Line = Mapping[str, str]


def against_uploads(study: Study, found: Sequence[Results]) -> str:
    """Head-counts and codecs: what they cost and came to, and who dominates them.

    found: the same sweep by each measure, that of its config first.
    """
    first = found[0]
    by = [_by_name(each) for each in found]
    held = label(study.baseline)
    measures = [units.label(each.metric) for each in found]
    header = [study.title, "uploads", "MB up", *(f"{m} in %" for m in measures)]
    header += [f"uploads against {held}", *(f"{m} against {held}, points" for m in measures), *_heads(measures)]
    body = []
    for column in first.columns:
        for row in first.rows:
            name = label(row, column)
            own = [one.get((row, column)) for one in by]
            if own[0] is None:
                body.append([name, NOT_MEASURED, *[""] * (len(header) - 2)])
                continue
            bases = [one.get((study.baseline, column)) for one in by]
            body.append(
                [
                    name,
                    f"{own[0].updates:,.0f}",
                    f"{own[0].bytes_up / 1e6:,.1f}",
                    *(_shown(point) for point in own),
                    *_beside(row == study.baseline, own[0], bases[0]),
                    *(_points(row == study.baseline, point, base) for point, base in zip(own, bases, strict=True)),
                    *(_dominating(*each) for each in zip(found, own, by, strict=True)),
                ]
            )
    return rows(header, body)


def _by_name(found: Results) -> dict[tuple[str, str], Point]:
    return {(p.row, p.column): p for panel in found.panels for p in points(found, panel)}


def _heads(measures: Sequence[str]) -> list[str]:
    return ["dominated by"] if len(measures) == 1 else [f"dominated in {measure} by" for measure in measures]


def _dominating(found: Results, point: Point | None, by: Mapping[tuple[str, str], Point]) -> str:
    if point is None:
        return ""
    return ", ".join(label(other) for other in dominating(found, point, list(by.values())))


def _shown(point: Point | None) -> str:
    if point is None:
        return NOT_MEASURED
    return f"{100 * point.mean:.2f} ± {100 * point.deviation / math.sqrt(point.seeds):.2f}"


def _beside(itself: bool, point: Point, base: Point | None) -> list[str]:
    return ["" if itself or base is None else f"{point.updates / base.updates - 1:+.0%}"]


def _points(itself: bool, point: Point | None, base: Point | None) -> str:
    return "" if itself or point is None or base is None else f"{100 * (point.mean - base.mean):+.2f}"


def against_time(metric: str, told: Sequence[Line]) -> str:
    """Strategies on one virtual clock: when each was where the one that waits for everybody ended."""
    names = list(dict.fromkeys([*STRATEGIES, *(line["strategy"] for line in told)]))
    waited = {line["seed"]: line["reached_clock"] for line in told if line["strategy"] == WAITING}
    header = (
        "MNIST, 100 clients",
        f"virtual time until FedAvg's last {units.label(metric)}, by seed",
        "share of FedAvg's",
        "uploads until then",
        f"{units.label(metric)} at the end in %",
        "uploads in all",
    )
    body = []
    for name in names:
        own = [line for line in told if line["strategy"] == name]
        if not own or not all(line[metric] for line in own):
            body.append([STRATEGIES.get(name, name), NOT_MEASURED, *[""] * (len(header) - 2)])
            continue
        there = [line for line in own if line["reached_clock"]]
        shares = [
            float(line["reached_clock"]) / float(waited[line["seed"]]) for line in there if waited.get(line["seed"])
        ]
        values = [100 * float(line[metric]) for line in own]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        body.append(
            [
                STRATEGIES.get(name, name),
                ", ".join(_seconds(line["reached_clock"]) for line in own),
                f"{statistics.fmean(shares):.2f}" if len(shares) == len(own) else "",
                f"{statistics.fmean(int(line['reached_updates']) for line in there):,.0f}"
                if len(there) == len(own)
                else "",
                f"{statistics.fmean(values):.2f} ± {error:.2f}",
                f"{statistics.fmean(int(line['updates']) for line in own):,.0f}",
            ]
        )
    return rows(header, body)


def _seconds(clock: str) -> str:
    return f"{float(clock):,.0f}" if clock else "never"
