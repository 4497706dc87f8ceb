"""Accuracy against uploads, a panel for each data set, as SVG that is the same whenever it is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.participation.studies import CODECS, ISP, fixed
from fedopt.report import units
from fedopt.report.sweep import Results
from fedopt.report.sweep_cost import Point, points

COLOURS = {"none": "#1f5fa8", "topk_5": "#c8501e"}
GREY = "#606060"
MARKERS = {"isp_uniform": "*", "isp_pow_d": "^", "isp_fedcor": "D", "isp_paper": "X"}
SIZES = {"*": 13, "^": 8, "D": 7, "X": 8}
TICKS = [k * 10**n for n in range(1, 6) for k in (1, 2, 5)]
WIDE, HIGH = 5.2, 4.4
"""Inches of a panel."""


def drawn(panels: Sequence[tuple[str, Results]]) -> bytes:
    """The whole picture; `panels` are titles and results."""
    # ids inside the file are hashes with this salt, and by themselves random
    with matplotlib.rc_context({"svg.hashsalt": "fedopt", "svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(WIDE * len(panels), HIGH), layout="constrained")
        shown: list[str] = []
        for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            shown += _panel(axes, title, found)
        if shown:
            figure.legend(handles=_legend(shown), loc="outside lower center", ncols=4, frameon=False)
        into = io.BytesIO()
        figure.savefig(into, format="svg", metadata={"Date": None, "Creator": None})
    return into.getvalue()


def _panel(axes: Axes, title: str, found: Results) -> list[str]:
    """Draw a panel; the settings and codecs that it shows."""
    known = [point for panel in found.panels for point in points(found, panel)]
    for codec in found.columns:
        own, colour = [point for point in known if point.column == codec], COLOURS[codec]
        level = sorted((point for point in own if fixed(point.row)), key=lambda point: point.updates)
        if level:
            _bars(axes, level, "o", colour, f"{codec}.fixed", joined=True)
        for point in level:
            axes.annotate(
                str(fixed(point.row)), (point.updates, 100 * point.mean), (0, -13), textcoords="offset points",
                ha="center", color=colour, fontsize=8,
            )  # fmt: skip
        for name, marker in MARKERS.items():
            for point in (point for point in own if point.row == name):
                _bars(axes, [point], marker, colour, f"{codec}.{name}")
    axes.set_title(title)
    axes.set_ylabel(f"{units.label(found.metric)}, %")
    axes.set_xlabel("uploads: client updates sent in all")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.1)
    if known:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        costs = [point.updates for point in known]
        axes.set_xlim(min(costs) / 1.3, max(costs) * 1.3)
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#707070")
    return [name for point in known for name in (point.row, point.column)]


def _legend(shown: Sequence[str]) -> list[Line2D]:
    """Markers say the rule, colours the codec."""
    handles = [Line2D([], [], color=GREY, marker="o", markersize=5, linewidth=1.2, label="fixed m")]
    for name, marker in MARKERS.items():
        if name in shown:
            handles.append(_mark(marker, GREY, ISP[name]))
    for codec, colour in COLOURS.items():
        if codec in shown:
            handles.append(_mark("s", colour, CODECS[codec] or "not compressed"))
    return handles


def _mark(marker: str, colour: str, text: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, markersize=SIZES.get(marker, 7), linestyle="none", label=text)


def _bars(axes: Axes, own: Sequence[Point], marker: str, colour: str, name: str, *, joined: bool = False) -> None:
    """Points with the standard error of their means."""
    line = axes.errorbar(
        [point.updates for point in own],
        [100 * point.mean for point in own],
        yerr=[100 * point.deviation / math.sqrt(point.seeds) for point in own],
        marker=marker,
        markersize=SIZES.get(marker, 5),
        markeredgecolor="white",
        markeredgewidth=0.6,
        linestyle="-" if joined else "none",
        linewidth=1.2,
        color=colour,
        elinewidth=1.0,
        capsize=2,
        zorder=2 if joined else 3,
    )
    line.lines[0].set_gid(name)
