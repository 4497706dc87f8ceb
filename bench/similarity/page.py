"""The tables of docs/similarity.md and docs/similarity.svg, from what is stored.

No figure is typed by hand: what is not stored is said to be not measured.
"""

from __future__ import annotations

import io
import json
import statistics
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench.pages import filled
from bench.processes import ROOT
from bench.similarity import cases, runs
from bench.similarity.cases import Task
from bench.table import rows

PAGE = ROOT / "docs" / "similarity.md"
PICTURE = ROOT / "docs" / "similarity.svg"
NETS = ROOT / "bench" / "cells" / "similarity-nets.json"
LINK = ROOT / "bench" / "cells" / "similarity-link.json"
COMMAND = "python -m bench.similarity"
NAMES = {"squares": "ridge regression", "logistic": "logistic regression", "cross_entropy": "softmax regression"}
DRAWN = (
    ("a9a-squares-20-columns", "rounds_f", "rounds with f"),
    ("a9a-squares-20-columns", "rounds_g", "rounds with g"),
    ("a9a-squares-100", "time", "transmission time"),
)
"""Panels of the picture: task, counter, and its label."""


def write() -> None:
    """Fill in the page, and draw."""
    parts = {"": separated() + "\n" + published(), ".nets": networks(), ".link": link()}
    text = PAGE.read_text()
    for name, content in parts.items():
        text = filled(text, COMMAND + name, content)
    PAGE.write_text(text)
    PICTURE.write_text(picture())


def _end(task: Task, name: str) -> list[str] | None:
    cell = runs.read(task, name)
    if cell is None:
        return None
    last = cell.points[-1]
    reached = "" if cell.ended == "goal" else f"{cell.ended}: {last.gap:.0e}"
    return [
        f"{last.rounds_f:,}",
        f"{last.rounds_g:,}",
        f"{last.messages:,}",
        f"{last.time:,.1f}",
        f"{last.bytes / 1e6:.2f}",
        reached,
    ]


def separated() -> str:
    """Tables of the tasks with two groups, and how much more rarely C-AEG asks f."""
    parts = []
    for task in cases.separated():
        body = [[name, *end] for name in cases.TWO if (end := _end(task, name)) is not None]
        title = f"**{_title(task)}, two groups**"
        if not body:
            parts.append(f"{title}: not measured.\n")
            continue
        head = ["", "rounds with f", "rounds with g", "messages", "time", "MB", "gap, where 1e-6 was not reached"]
        parts.append(f"{title}\n\n{rows(head, body)}")
        both = [runs.read(task, name) for name in ("aeg", "c-aeg")]
        if all(cell is not None and cell.ended == "goal" for cell in both):
            aeg, c_aeg = (cell.points[-1].rounds_f for cell in both if cell is not None)
            constants = both[1].constants if both[1] is not None else {}
            ratio = constants["delta_g"] / constants["delta_f"]
            parts.append(f"δ_g / δ_f = {ratio:.1f}; C-AEG asks f {aeg / c_aeg:.1f} times less often than AEG.\n")
    return "\n".join(parts)


def published() -> str:
    """Tables of the tasks without groups."""
    parts = []
    for task in cases.published():
        body = []
        for name in cases.SINGLE:
            end = _end(task, name)
            if end is not None:
                body.append([name, end[0], *end[2:]])
        title = f"**{_title(task)}, {task.clients} clients**"
        head = ["", "rounds", "messages", "time", "MB", "gap, where 1e-6 was not reached"]
        parts.append(f"{title}\n\n{rows(head, body)}" if body else f"{title}: not measured.\n")
    return "\n".join(parts)


def networks() -> str:
    """Mean accuracy, and rounds with f until 80 %, over seeds."""
    if not NETS.exists():
        return "not measured\n"
    stored = json.loads(NETS.read_text())
    parts = []
    for net in sorted({word.split(", ")[0] for word in stored}):
        body = []
        for method in dict.fromkeys(", ".join(word.split(", ")[1:-1]) for word in stored if word.startswith(net + ",")):
            seeds = [stored[w]["points"] for w in stored if w.startswith(f"{net}, {method}, ")]
            last = [points[-1] for points in seeds]
            reached = [next((p for p in points if p[2] >= 0.8), None) for points in seeds]
            there = [p for p in reached if p is not None]
            body.append(
                [
                    method, f"{statistics.mean(p[0] for p in last):.0f}", f"{statistics.mean(p[1] for p in last):.0f}",
                    f"{100 * statistics.mean(p[2] for p in last):.1f}{_spread([100 * p[2] for p in last])}",
                    f"{statistics.mean(p[0] for p in there):.0f}" if len(there) == len(seeds) else "not",
                    f"{statistics.mean(p[1] for p in there):.0f}" if len(there) == len(seeds) else "not",
                    str(len(seeds)),
                ]
            )  # fmt: skip
        head = ["", "rounds with f", "with g", "accuracy, %", "f to 80 %", "g to 80 %", "seeds"]
        parts.append(f"**{net}**\n\n{rows(head, body)}")
    return "\n".join(parts)


def link() -> str:
    """Seconds over the link."""
    if not LINK.exists():
        return "not measured\n"
    stored: dict[str, Any] = json.loads(LINK.read_text())
    body = [
        [name, f"{found['seconds']:.1f}", str(found["rounds"]), f"{found['gap']:.1e}"] for name, found in stored.items()
    ]
    return rows(["", "seconds", "rounds", "gap"], body)


def picture() -> str:
    """Gap against counters, as SVG."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for place, (word, counter, label) in enumerate(DRAWN, 1):
        axes = figure.add_subplot(1, len(DRAWN), place)
        task = next(t for t in (*cases.separated(), *cases.published()) if t.word == word)
        for name in cases.TWO if task.groups else cases.SINGLE:
            cell = runs.read(task, name)
            if cell is not None:
                axes.semilogy([getattr(p, counter) for p in cell.points], [p.gap for p in cell.points], label=name)
        axes.set(xlabel=label, ylabel="relative gap", title=_title(task), ylim=(runs.GOAL / 2, 3.0))
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        if axes.lines and place != 1:
            axes.legend(fontsize=6, ncols=2 if not task.groups else 1)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "similarity", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _title(task: Task) -> str:
    return f"{task.data}, {NAMES[task.loss]}"


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
