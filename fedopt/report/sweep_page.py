"""The page of a sweep: ranks, worst cells, a heat map for each panel, every cell; readable without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedopt.report import sweep_cost, units
from fedopt.report.page import document, escape, save
from fedopt.report.sweep import Group, Panel, Results, columns_of, ranked, read, rows_of, worst_of

GAP = 0.35
"""Between blocks of a heat map, in widths of a column."""
WORST = 1.5
"""Width of the column of the worst, which names them."""
ROW = 44
"""Height of a row in pixels."""
NARROW = 5
"""So many columns go into half the width of the page."""
STEEP = 20.0
"""A measure without bounds is coloured by its logarithm where the greatest is so many times the least."""


def write(folder: str | Path) -> Path:
    """Write `sweep.html` and `sweep.csv` beside the `sweep.json` of a sweep's folder; returns the path of the page."""
    found = read(folder)
    save(Path(folder) / "sweep.csv", rows_of(found))
    return save(Path(folder) / "sweep.html", page(found))


def page(found: Results) -> str:
    """The page as HTML text."""
    data = {
        "panels": [_panel(found, panel) for panel in found.panels],
        "scale": _scale(found),
        "ranks": _ranks(found),
        "worst": _worst(found),
        "troubles": _troubles(found),
        "cells": _cells(found),
    }
    if sweep_cost.varies(found):
        data |= {"costs": [sweep_cost.picture(found, panel) for panel in found.panels]}
        data |= {"cost": sweep_cost.table(found)}
    return document(f"{found.document['name']} · fedopt", _body(found), data, ["sweep.js"])


def _scale(found: Results) -> dict[str, Any] | None:
    """Range of the colours, the same for all panels; `steep` measures are coloured by their logarithm."""
    means = [group.mean for group in found.groups if group.mean is not None]
    if not means:
        return None
    low, high = min(means), max(means)
    steep = not units.is_share(found.metric) and low > 0 and high > STEEP * low
    ticks = [low, math.sqrt(low * high), high] if steep else [low, (low + high) / 2, high]
    return {
        "low": low,
        "high": high if high > low else low + 1e-9,
        "steep": steep,
        "up": found.up,
        "ticks": [[tick, units.measure(found.metric, tick)] for tick in ticks],
    }


def _panel(found: Results, panel: Panel) -> dict[str, Any]:
    """One heat map: blocks of columns (without attack, with, the worst of them) that stand apart, and words."""
    columns = columns_of(found, panel)
    blocks: list[dict[str, Any]] = []
    ticks: list[list[Any]] = []
    words: list[dict[str, Any]] = []
    at = 0.0
    for clean in (True, False):
        names = [name for name, free in columns if free == clean]
        if not names:
            continue
        block = _Block([at + i for i in range(len(names))])
        for y, row in enumerate(found.rows):
            for x, name in enumerate(names):
                group = panel.cells.get((row, name))
                block.add(found, group, found.shown(group), f"{row}, {name}" if name else row, y, block.x[x], words)
        ticks += [[block.x[i], name, clean] for i, name in enumerate(names)]
        blocks.append(block.data(len(found.rows)))
        at = block.x[-1] + 1 + GAP
    if len(columns) > 1 and any(found.counts(group) for group in panel.cells.values()):
        at += (WORST - 1) / 2
        block = _Block([at])
        for y, row in enumerate(found.rows):
            worst = found.worst(group for (r, _), group in panel.cells.items() if r == row)
            text = "\n".join(worst_of(found, worst)).strip()
            block.add(found, worst.group if worst else None, text, f"{row}, worst", y, at, words)
        ticks.append([at, "worst", False])
        # a heat map takes edges in place of centres
        blocks.append({**block.data(len(found.rows)), "x": [at - WORST / 2, at + WORST / 2]})
    return {"title": panel.title, "rows": found.rows, "blocks": blocks, "ticks": ticks, "words": words}


class _Block:
    """Columns of a heat map that stand together; `words` is what is written on all blocks."""

    def __init__(self, x: Sequence[float]) -> None:
        self.x = list(x)
        self.z: list[float | None] = []
        self.hover: list[str] = []

    def add(
        self, found: Results, group: Group | None, text: str, where: str, y: int, x: float, words: list[dict[str, Any]]
    ) -> None:
        """The next cell, row by row; one without a mean has no colour."""
        said = next((str(cell["message"]) for cell in group.cells if cell["message"]), "") if group else ""
        hover = f"{where}: {' '.join(text.split())}" + (f" ({said})" if said else "")
        text = text.replace(" ± ", "\n± ")
        mean = None if group is None else group.mean
        self.z.append(mean)
        self.hover.append(hover)
        words.append({"x": x, "y": y, "z": mean, "text": text, "hover": hover, "bad": bool(group and group.bad)})

    def data(self, rows: int) -> dict[str, Any]:
        """Values in rows."""
        wide = len(self.x)
        cut = [slice(i * wide, (i + 1) * wide) for i in range(rows)]
        return {"x": self.x, **{name: [getattr(self, name)[c] for c in cut] for name in ("z", "hover")}}


def _ranks(found: Results) -> dict[str, Any] | None:
    ranks, many = found.ranks(), len(found.scenarios())
    if len(found.rows) < 2 or not ranks:
        return None
    heads = [found.rows_axis, "mean rank", "first", "worst of all", "in"]
    rows = []
    for rank in ranks:
        worst = found.worst(found.row(rank.row))
        value, where = worst_of(found, worst, whole=True)
        rows.append(
            [
                rank.row,
                [rank.mean, f"{rank.mean:.2f}"],
                [rank.firsts, f"{rank.firsts} of {many}"],
                [worst.group.mean if worst else None, value],
                where,
            ]
        )
    return {"columns": [{"name": head, "right": head in heads[1:4]} for head in heads], "rows": rows}


def _worst(found: Results) -> dict[str, Any]:
    """The worst of every row, a column for each panel."""
    rows: list[list[Any]] = []
    for row in found.rows:
        cells: list[Any] = [row]
        for panel in found.panels:
            worst = found.worst(group for (r, _), group in panel.cells.items() if r == row)
            cells.append([worst.group.mean if worst else None, " ".join(reversed(worst_of(found, worst))).strip()])
        rows.append(cells)
    heads = [{"name": found.rows_axis}] + [{"name": panel.title or "worst", "right": True} for panel in found.panels]
    return {"columns": heads, "rows": rows}


def _troubles(found: Results) -> dict[str, Any] | None:
    rows = [[word, found.label(cell), message] for cell, word, message in found.troubles()]
    return {"columns": [{"name": name} for name in ("state", "cell", "reason")], "rows": rows} if rows else None


def _cells(found: Results) -> dict[str, Any]:
    axes = list(found.document["axes"])
    rows = []
    for group in found.groups:
        seconds = sum(float(cell["seconds"]) for cell in group.cells)
        finished = sum(cell["state"] == "finished" for cell in group.cells)
        rows.append(
            [
                *(group.settings[axis] for axis in axes),
                [group.mean, found.shown(group, unit=True)],
                [finished, f"{finished} of {len(group.cells)}"],
                [seconds, units.duration(seconds)],
                [[cell["seed"], f"{quote(cell['folder'])}/report.html"] for cell in group.cells if cell["report"]],
            ]
        )
    columns = [
        *({"name": axis} for axis in axes),
        {"name": units.label(found.metric), "right": True},
        {"name": "seeds", "right": True, "hint": "finished"},
        {"name": "time", "right": True},
        {"name": "reports", "hint": "by seed"},
    ]
    return {"columns": columns, "rows": rows}


def _body(found: Results) -> str:
    several = len(found.panels) > 1
    cards = []
    for i, panel in enumerate(found.panels):
        height = ROW * len(found.rows) + 84
        wide = " wide" if len(columns_of(found, panel)) > NARROW or not several else ""
        cards.append(
            f'<div class="card{wide}"><h3>{escape(panel.title)}</h3>'
            f'<div class="plot" id="panel-{i}" style="height: {height}px"></div></div>'
        )
    parts = [
        "<main>",
        _header(found),
        "<noscript><p class='call'>The pictures and tables below need JavaScript.</p></noscript>",
    ]
    if len(found.rows) > 1:
        ready = '<div id="ranks"></div>' if found.ranks() else "<p>None yet: no comparison is complete.</p>"
        note = (
            f"{ranked(found)}; 1 is best, rows that are level share their ranks, and what was refused, failed or has "
        )
        note += "no value is last."
        parts.append(_section("Ranks", f'<div class="card">{ready}<p class="note">{escape(note)}</p></div>'))
    across = found.columns_axis or "cells"
    note = f"The worst mean over seeds along {across}" + (
        ", those without an attack left out." if found.attacked else "."
    )
    parts.append(
        _section(f"Worst {across}", f'<div class="card"><div id="worst"></div><p class="note">{escape(note)}</p></div>')
    )
    parts.append(_section("Cells", f'<div class="grid">{"".join(cards)}</div>'))
    if sweep_cost.varies(found):
        drawn = "".join(
            f'<div class="card wide"><h3>{escape(panel.title)}</h3><div class="plot tall" id="cost-{i}-updates"></div>'
            f'<div class="plot tall" id="cost-{i}-bytes"></div></div>'
            for i, panel in enumerate(found.panels)
        )
        drawn += '<div class="card wide" id="cost"></div>'
        parts.append(_section("Against cost", f'<div class="grid">{drawn}</div>'))
    if found.troubles():
        parts.append(_section("Refused and failed", '<div class="card" id="troubles"></div>'))
    parts.append(_section("All cells", '<div class="card" id="cells"></div>'))
    parts += [_footer(found), "</main>"]
    return "\n".join(parts)


def _section(title: str, inner: str) -> str:
    return f'<section><div class="bar"><h2>{escape(title)}</h2></div>\n{inner}</section>'


def _header(found: Results) -> str:
    states, plan = found.states(), found.document
    spans = " × ".join(f"{axis} ({len(names)})" for axis, names in plan["axes"].items())
    lead = f"{spans} × seed ({len(plan['seeds'])}): {found.said()}."
    seconds = sum({cell["key"]: float(cell["seconds"]) for cell in plan["cells"]}.values())
    figures = [("different runs", units.count(sum(states.values())))]
    figures += [(state, units.count(count)) for state, count in sorted(states.items())]
    figures += [("time in all", units.duration(seconds))]
    left = sum(count for state, count in states.items() if state not in ("finished", "refused", "failed"))
    call = f'<p class="call">{left} of {sum(states.values())} runs are not done.</p>' if left else ""
    shown = "".join(
        f'<div class="figure"><span>{escape(name)}</span><b>{escape(value)}</b></div>' for name, value in figures
    )
    return (
        f"<header><h1>{escape(plan['name'])}</h1>"
        f'<p class="lead">{escape(lead)}</p>{call}<div class="figures">{shown}</div></header>'
    )


def versions(plan: Mapping[str, Any]) -> list[str]:
    """The versions that cells were run with; several make numbers that may not be comparable."""
    return sorted({str(cell["versions"]) for cell in plan["cells"] if cell["versions"]})


def _footer(found: Results) -> str:
    with_ = versions(found.document)
    call = (
        f'<p class="call">Cells were run with different versions: {escape("; ".join(with_))}.</p>'
        if len(with_) > 1
        else ""
    )
    return f"{call}<footer>{escape('; '.join(with_))}</footer>"
