"""What a sweep came to, as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from fedopt.report.sweep import Group, Panel, Results, columns_of, ranked, worst_of

TOLD = 20
"""How many reasons for refused and failed cells are listed."""


def table(found: Results, width: int = 80) -> RenderableType:
    """Everything for a terminal: a table for each panel, the ranks, and what went wrong."""
    parts: list[RenderableType] = [Text(found.said(), style="bold")]
    for panel in found.panels:
        drawn = _panel(found, panel, True)
        # where it does not fit, without the spread; names give way to numbers
        parts.append(drawn if _width(drawn) <= width else _panel(found, panel, False))
    if len(found.rows) > 1:
        parts.append(_ranks(found))
    told: dict[tuple[str, str], list[str]] = {}  # what goes wrong in one cell mostly goes wrong in others alike
    for cell, word, message in found.troubles():
        told.setdefault((word, message), []).append(found.label(cell))
    if told:
        parts.append(Text("refused and failed", style="bold"))
    for (word, message), labels in list(told.items())[:TOLD]:
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        style = "red" if word == "failed" else "yellow"
        parts.append(Text.assemble((word, style), f"  {labels[0]}{more}: {message}"))
    if len(told) > TOLD:
        parts.append(Text(f"and {len(told) - TOLD} other reasons, see sweep.html"))
    return Stack(*parts)


def _panel(found: Results, panel: Panel, deviation: bool) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title=panel.title or None, title_justify="left")
    drawn.add_column(found.rows_axis, overflow="fold")
    columns = columns_of(found, panel)
    scores = any(found.counts(group) for group in panel.cells.values()) and len(columns) > 1
    rows = []
    best = {name: best_in(found, panel, name) for name, _ in columns}
    for row in found.rows:
        cells = [Text(row)]
        for name, _ in columns:
            group = panel.cells.get((row, name))
            top = group is not None and group.mean is not None and group.mean == best[name]
            cells.append(Text(found.shown(group, deviation=deviation), style="bold" if top else _style(group)))
        if scores:
            worst = found.worst(group for (r, _), group in panel.cells.items() if r == row)
            cells += [Text(text, style=_style(worst.group if worst else None)) for text in worst_of(found, worst)]
        rows.append(cells)
    heads = [f"{name}\nno attack" if clean else name for name, clean in columns] + ["worst"] * scores
    for i, head in enumerate(heads, 1):
        wide = max(len(cells[i]) for cells in rows)
        drawn.add_column(Text(head), justify="right", overflow="fold", min_width=wide)
    if scores:
        drawn.add_column(str(found.columns_axis), overflow="fold")
    for cells in rows:
        drawn.add_row(*cells)
    return drawn


def best_in(found: Results, panel: Panel, column: str) -> float | None:
    """The best mean of a column."""
    means = [group.mean for (_, name), group in panel.cells.items() if name == column and group.mean is not None]
    return (max if found.up else min)(means, default=None)


def _style(group: Group | None) -> str:
    if group is None or group.open:
        return "dim"
    return {"failed": "red", "refused": "yellow", "no value": "yellow"}.get(group.bad, "")


def _ranks(found: Results) -> RenderableType:
    ranks, many = found.ranks(), len(found.scenarios())
    if not ranks:
        return Text(f"{found.rows_axis}: no ranks yet, they need a comparison in which every cell is done", style="dim")
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title=ranked(found), title_justify="left")
    drawn.add_column(found.rows_axis, overflow="fold")
    drawn.add_column("mean rank", justify="right", no_wrap=True)
    drawn.add_column("first", justify="right", no_wrap=True)
    drawn.add_column("worst of all", justify="right", no_wrap=True)
    drawn.add_column("in", overflow="fold")
    for rank in ranks:
        worst = found.worst(found.row(rank.row))
        drawn.add_row(
            *(Text(text) for text in (rank.row, f"{rank.mean:.2f}", f"{rank.firsts} of {many}")),
            *(Text(text) for text in worst_of(found, worst, whole=True)),
        )
    return drawn


def _width(drawn: Table) -> int:
    return Console(width=10_000).measure(drawn).maximum
