"""The tables of docs/vfl.md and docs/vertical.svg, from what is stored.

No figure is typed by hand: what is not stored is said to be not measured.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.pages import filled
from bench.processes import ROOT
from bench.run import RESULTS
from bench.table import rows
from bench.vertical import grid
from bench.vertical.grid import Cell

PAGE = ROOT / "docs" / "vfl.md"
PICTURE = ROOT / "docs" / "vertical.svg"
NETS = ROOT / "bench" / "cells" / "vertical-nets.json"
LEAKAGE = ROOT / "bench" / "cells" / "vertical-leakage.json"
COMMAND = "python -m bench.vertical"
LOSSES = {"squares": "Ridge regression", "logistic": "Logistic regression"}
DRAWN = {
    "gd": ("#b0b0b0", "-"),
    "agd": ("#303030", "-"),
    "gd, randk 2 %": ("#e0a030", "--"),
    "egvfl": ("#1f5fa8", "-"),
    "egvfl, augmented": ("#7fb0e0", "-"),
    "randk 10 %": ("#90c070", "-"),
    "randk 2 %": ("#2f7d32", "-"),
    "randk 2 %, natural": ("#2f7d32", ":"),
    "randk 1 %": ("#104010", "-"),
    "permk": ("#7a3fa0", "-"),
    "quantised": ("#c8501e", "-"),
    "topk 5 %, ef14": ("#e08080", "-"),
}
"""Colour and line of the arms in the picture; the table has all of them."""


class Found(NamedTuple):
    """What is known of an arm."""

    best: Cell | None
    """None: it never came to the goal."""
    nearest: Cell
    """The run that ended nearest to the optimum, of those that did not end for their bytes."""
    safe: Cell
    runs: int


def found(data: str, loss: str, arm: str) -> Found | None:
    """None: not measured."""
    cells = grid.read(data, loss, arm)
    if not cells:
        return None
    nearest = min(cells, key=lambda cell: cell.points[-1].gap)
    return Found(grid.best(cells), nearest, cells[0], len(cells))


def write() -> None:
    """Write both."""
    text = PAGE.read_text()
    parts = {"": tables(), ".nets": networks(), ".speed": speed(), ".leakage": leakage()}
    for module, part in parts.items():
        text = filled(text, COMMAND + module, part)
    PAGE.write_text(text)
    PICTURE.write_bytes(picture())


def networks() -> str:
    """A table for each task."""
    stored = json.loads(NETS.read_text()) if NETS.exists() else {}
    if not stored:
        return "Not measured."
    parts = []
    for task, arms in stored.items():
        body = []
        for arm, seeds in arms.items():
            runs = list(seeds.values())
            figures = [_spread([run[figure] for run in runs]) for figure in ("accuracy", "macro_f1")]
            body.append([arm, *figures, str(len(runs)), f"{statistics.mean(run['seconds'] for run in runs):.0f}"])
        parts.append(f"**{task}**\n\n{rows(('', 'accuracy, %', 'macro-F1, %', 'seeds', 'seconds'), body)}")
    return "\n".join(parts)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def speed() -> str:
    """Iterations per second and their floor, of every machine that has figures."""
    parts = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        simulated, link = (_stored(folder / f"vertical.{name}.json") for name in ("simulated", "link"))
        body = []
        for executor, found in (simulated or {}).get("executors", {}).items():
            body.append([f"simulated, `{executor}`", *_rate(found["per iteration"])])
        if simulated:
            body.append(["the products alone", *_rate(simulated["products"])])
            read = f"reading {simulated['read'] / 1e6:.0f} MB at the speed of a copy"
            body.append([f"{read}; {simulated['operations'] / 1e6:.0f}e6 operations", *_rate(simulated["reading"])])
        if link:
            body.append(["over the link, a process for each party", *_rate(link["parts"]["per iteration"])])
            echo = f"two exchanges in which {link['bytes'] / 1e6:.1f} MB are said and said back"
            body.append([echo, *_rate(link["echo"])])
        if body:
            parts.append(f"{folder.name}:\n\n{rows(('', 'iterations/s', 'ms'), body)}")
    return "\n".join(parts) or "Not measured."


def leakage() -> str:
    """The success of attacks, a column for each."""
    stored = _stored(LEAKAGE)
    if stored is None:
        return "Not measured."
    attacks = [name for name in next(iter(stored.values())) if name not in ("accuracy", "epsilon")]
    body = [
        ["*a guess without messages*", "", "", *(f"{next(iter(stored.values()))[a]['baseline']:.3f}" for a in attacks)]
    ]
    for arm, found in stored.items():
        spent = "" if found["epsilon"] is None else f"{found['epsilon']:,.0f}"
        body.append([arm, f"{found['accuracy']:.2%}", spent, *(f"{found[a]['attack']:.3f}" for a in attacks)])
    return rows(("", "accuracy", "ε of a label", *attacks), body)


def _stored(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _rate(seconds: float) -> tuple[str, str]:
    return f"{1.0 / seconds:,.0f}", f"{1e3 * seconds:.2f}"


def tables() -> str:
    """A table for each loss and data set."""
    parts = []
    for loss, title in LOSSES.items():
        for data in grid.DATA:
            known = {arm: found(data, loss, arm) for arm in grid.ARMS}
            if not any(known.values()):
                parts.append(f"**{title}, {data}**: not measured.\n")
                continue
            plain = known["egvfl"]
            reference = plain.best.points[-1].bytes if plain is not None and plain.best is not None else None
            body = [_row(arm, one, reference) for arm, one in known.items() if one is not None]
            header = ("", "iterations", "10^6 numbers", "MB", "EGVFL's / its MB", "accuracy", "step, s", "safe default")
            parts.append(f"**{title}, {data}**\n\n{rows(header, body)}")
    return "\n".join(parts)


def _row(arm: str, known: Found, reference: int | None) -> list[str]:
    cell = known.best
    if cell is None:
        end = known.nearest.points[-1]
        text = f"not: {end.gap:.1e} after {end.iteration:,}"
        return [arm, text, _millions(end.floats), _megabytes(end.bytes), "", *_tuned(known.nearest), _safe(known.safe)]
    end = cell.points[-1]
    ratio = "" if reference is None else f"{reference / end.bytes:.1f}"
    numbers = [f"{end.iteration:,}", _millions(end.floats), _megabytes(end.bytes), ratio]
    return [arm, *numbers, *_tuned(cell), _safe(known.safe)]


def _tuned(cell: Cell) -> tuple[str, str]:
    return f"{cell.accuracy:.2%}", f"{cell.multiple:.3g} x, {cell.constraint:g}"


def _safe(cell: Cell) -> str:
    end = cell.points[-1]
    text = f"{end.iteration:,} it., {_megabytes(end.bytes + cell.power)} MB"
    return text if cell.ended == "goal" else f"{cell.ended}: {end.gap:.1e} after {text}"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}" if number < 1e8 else f"{number / 1e6:,.0f}"


def picture() -> bytes:
    """The gap against bytes, a row of panels for each loss."""
    # ids inside the file are hashes with this salt, and by themselves random
    with matplotlib.rc_context({"svg.hashsalt": "fedopt", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(4.4 * len(grid.DATA), 3.6 * len(LOSSES)), layout="constrained")
        panels = figure.subplots(len(LOSSES), len(grid.DATA), squeeze=False)
        for line, loss in zip(panels, LOSSES, strict=True):
            for axes, data in zip(line, grid.DATA, strict=True):
                _panel(axes, data, loss)
        handles = [Line2D([], [], color=colour, linestyle=style, label=arm) for arm, (colour, style) in DRAWN.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
        into = io.BytesIO()
        figure.savefig(into, format="svg", metadata={"Date": None, "Creator": None})
    return into.getvalue()


def _panel(axes: Axes, data: str, loss: str) -> None:
    shown: list[Sequence[grid.Point]] = []
    for arm, (colour, style) in DRAWN.items():
        known = found(data, loss, arm)
        if known is None:
            continue
        points = (known.best or known.nearest).points
        shown.append(points)
        axes.plot(
            [point.bytes / 1e6 for point in points], [point.gap for point in points],
            color=colour, linestyle=style, linewidth=1.4,
        )  # fmt: skip
    axes.set_title(f"{data}, {LOSSES[loss].lower()}")
    axes.set_xlabel("MB of all messages")
    axes.set_ylabel("relative gap")
    if shown:
        axes.set(xscale="log", yscale="log", ylim=(0.5 * grid.GOAL, 3.0))
        axes.axhline(grid.GOAL, color="#808080", linewidth=0.8, linestyle=":")
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#707070")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
