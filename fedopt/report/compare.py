"""Several runs side by side: one picture and one table; repeats with other seeds become a mean with its spread."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from fedopt.report import record as run
from fedopt.report import units
from fedopt.report.html import AXES
from fedopt.report.page import document, escape, save, thin
from fedopt.report.record import METRICS, RunRecord
from fedopt.types import FedoptError

REPEATED = frozenset({"run.seed", "run.out"})
"""What repeats of one experiment may differ in."""
SEED_FOLDER = re.compile(r"seed-\d+")
ABSENT = "–"


class Group(NamedTuple):
    """One run, or the repeats of one experiment with other seeds."""

    name: str
    runs: list[RunRecord]

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return str(self.runs[0].info.get("strategy") or ABSENT)


def compare(paths: Iterable[str | Path], out: str | Path) -> tuple[Path, Table]:
    """Write a page that compares the runs in `paths` to the file `out`; return its path, and the terminal's table.

    A path is a run folder, or a folder of such. Raises FedoptError where there is nothing to compare.
    """
    groups = gather(paths)
    return save(Path(out), page(groups)), table(groups)


def gather(paths: Iterable[str | Path]) -> list[Group]:
    """The runs under `paths` in groups, in the order given.

    Runs whose configs differ in `run.seed` and `run.out` alone are one group. So is a folder of `seed-1`, `seed-2`
    and so on, whose runs have to be such repeats (their `run.name` may differ, too). Two runs with the same seed are
    no repeats and stay apart.
    """
    groups: list[Group] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        for group in _under(path):
            fresh = [r for r in group.runs if r.path.resolve() not in seen]
            seen.update(r.path.resolve() for r in fresh)
            if fresh:
                _add(groups, group._replace(runs=fresh))
    if not groups:
        raise FedoptError("nothing to compare: give at least one run folder")
    return _named_apart(groups)


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() or (path / "metrics.jsonl").is_file()


def _under(path: Path) -> list[Group]:
    if _is_run(path) or not path.is_dir():
        record = run.read(path)
        return [Group(record.name, [record])]
    inside = sorted((p for p in path.iterdir() if p.is_dir()), key=_natural)
    seeds = [p for p in inside if SEED_FOLDER.fullmatch(p.name) and _is_run(p)]
    found = [_repeats(path.resolve().name, seeds)] if seeds else []
    # a folder of several experiments, each a run or a folder of seeds
    deeper = [p for p in inside if p not in seeds and (_is_run(p) or any(map(_is_run, _folders(p))))]
    found += [group for p in deeper for group in _under(p)]
    if not found:
        raise FedoptError(f"{path}: a run folder, or a folder of such, was needed; there is no run.json in it")
    return found


def _folders(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if p.is_dir()]


def _natural(path: Path) -> list[tuple[int, str]]:
    """seed-2 before seed-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _repeats(name: str, folders: Sequence[Path]) -> Group:
    group = Group(name, [run.read(p) for p in folders])
    for other in group.runs[1:]:
        keys = _differing([group.runs[0], other]) - {"run.name"}
        if keys:
            raise FedoptError(
                f"{group.runs[0].path} and {other.path} stand in one folder as repeats with other seeds, but differ "
                f"in {', '.join(sorted(keys))}; make them equal, or rename the folders"
            )
    return group


def _add(groups: list[Group], new: Group) -> None:
    for group in groups:
        together = [*group.runs, *new.runs]
        seeds = [flat(r.config).get("run.seed") for r in together]
        if len(set(map(repr, seeds))) == len(seeds) and not _differing(together):
            group.runs.extend(new.runs)
            return
    groups.append(Group(new.name, list(new.runs)))


def _named_apart(groups: list[Group]) -> list[Group]:
    """Groups of the same name are told apart by their folders."""
    names = [group.name for group in groups]
    named = [
        group if names.count(group.name) == 1 else group._replace(name=f"{group.name} · {_place(group)}")
        for group in groups
    ]
    again = [group.name for group in named]
    return [
        group if again.count(group.name) == 1 else group._replace(name=f"{group.name} · {i}")
        for i, group in enumerate(named, 1)
    ]


def _place(group: Group) -> str:
    """The folder that tells a group's runs from those of others."""
    folder = group.runs[0].path.resolve()
    return folder.parent.name if SEED_FOLDER.fullmatch(folder.name) else folder.name


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config values by their path, `optimizer.lr`, `attack[0].name`."""
    values: dict[str, Any] = {}

    def walk(where: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{where}.{key}" if where else str(key), inner)
        elif isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
            for i, inner in enumerate(value):
                walk(f"{where}[{i}]", inner)
        else:
            values[where] = value

    walk("", config)
    return values


def _differing(records: Sequence[RunRecord]) -> set[str]:
    """Paths of config values that are not the same in all records, but for what repeats may differ in."""
    configs = [flat(record.config) for record in records]
    keys = {key for config in configs for key in config} - REPEATED
    # repr: 1, 1.0 and true are different things in a config
    return {key for key in keys if len({repr(config[key]) if key in config else "" for config in configs}) > 1}


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What the groups' configs differ in: the values by path, one for each group; `aggregator` is its name."""
    first = [group.runs[0] for group in groups]
    configs = [flat(record.config) for record in first]
    # the name stands in the table already
    keys = _differing(first) - {"run.name"}
    return {
        key.removesuffix(".name"): [_shown(config[key]) if key in config else ABSENT for config in configs]
        for key in sorted(keys)
    }


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def metrics(groups: Sequence[Group]) -> list[str]:
    """The measures that any run has, those first that all groups have, otherwise as in `METRICS`."""
    held = {
        name: sum(any(run.series(r, name).y for r in group.runs) for group in groups)
        for name in [*METRICS, "g_mean", "macro_f1", *backdoors(groups)]
    }
    return sorted((name for name in held if held[name]), key=lambda name: held[name] < len(groups))


def backdoors(groups: Sequence[Group]) -> list[str]:
    """The measures of backdoors that any run has, `backdoor.NAME`."""
    names = [name for group in groups for r in group.runs for name in run.fields(r, "backdoor")]
    return [f"backdoor.{name}" for name in dict.fromkeys(names)]


def _backdoor(record: RunRecord) -> float | None:
    """The final rate of the backdoor that succeeds most."""
    marks = [run.final(record, name) for name in backdoors([Group("", [record])])]
    return max((mark.value for mark in marks if mark), default=None)


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """(mean, standard deviation with n - 1); None without values, a deviation of 0 for a single one."""
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def curve(group: Group, name: str, look: int) -> dict[str, Any] | None:
    """The group's curve of one measure: the mean over its runs, at the rounds that all of them measured.

    Bytes, seconds and updates on the horizontal axis are means as well. Runs that never measured it are left out.
    """
    tables = [_by_round(record, name) for record in group.runs]
    tables = [table for table in tables if table]
    if not tables:
        return None
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    points = [[table[r] for table in tables] for r in rounds]
    bands = [spread([y for y, _ in point]) or (0.0, 0.0) for point in points]
    kept = thin([mean for mean, _ in bands])
    trace: dict[str, Any] = {
        "name": group.name if len(tables) == 1 else f"{group.name} ({len(tables)} seeds)",
        "look": look,
        "y": [bands[i][0] for i in kept],
        "x": {axis: [statistics.fmean(x[k] for _, x in points[i]) for i in kept] for k, axis in enumerate(AXES)},
    }
    if len(tables) > 1:
        trace["low"] = [bands[i][0] - bands[i][1] for i in kept]
        trace["high"] = [bands[i][0] + bands[i][1] for i in kept]
    return trace


def _by_round(record: RunRecord, name: str) -> dict[float, tuple[float, tuple[float, ...]]]:
    """(value, position on each of AXES) by round; the last one where a round has several."""
    y = run.series(record, name).y
    xs = [run.series(record, name, axis).x for axis in AXES]
    return {x[0]: (value, x) for value, *rest in zip(y, *xs, strict=True) for x in [tuple(rest)]}


class Row(NamedTuple):
    """What the table says of one group; numbers are means over its runs."""

    name: str
    strategy: str
    rounds: float
    final: tuple[float, float] | None
    """Mean and standard deviation of the measure `judged_by`."""
    best: tuple[float, float] | None
    nbytes: float
    seconds: float
    backdoor: tuple[float, float] | None = None
    """Of the final rate of the backdoor that succeeds most."""


def judged_by(groups: Sequence[Group]) -> str | None:
    """The measure that the table compares: the first that all groups have; a backdoor's rate judges no run."""
    return next((name for name in metrics(groups) if not name.startswith("backdoor.")), None)


def rows(groups: Sequence[Group]) -> list[Row]:
    """The table's rows, one for each group."""
    name = judged_by(groups)
    found = []
    for group in groups:
        many = f"{group.name} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.name
        states = sorted({str(r.info.get("status")) for r in group.runs} - {"finished"})
        sums = [run.totals(r) for r in group.runs]
        found.append(
            Row(
                f"{many} [{', '.join(states)}]" if states else many,
                group.strategy,
                statistics.fmean(s.rounds for s in sums),
                spread([mark.value for r in group.runs if name and (mark := run.final(r, name))]),
                spread([mark.value for r in group.runs if name and (mark := run.best(r, name))]),
                statistics.fmean(s.bytes_up + s.bytes_down for s in sums),
                statistics.fmean(s.seconds for s in sums),
                spread([rate for r in group.runs if (rate := _backdoor(r)) is not None]),
            )
        )
    return found


def _measured(name: str | None, value: tuple[float, float] | None, group: Group) -> str:
    mean, deviation = value or (None, None)
    return units.measure(name or "", mean, deviation if len(group.runs) > 1 else None)


def table(groups: Sequence[Group]) -> Table:
    """The comparison for the terminal; below a run's name stands in what its config differs from the others'."""
    name, unlike = judged_by(groups), differences(groups)
    what = units.label(name) if name else "measure"
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    result.add_column("run", overflow="fold")
    attacked = ["final\nbackdoor"] if backdoors(groups) else []
    for head in ("rounds", f"final\n{what}", f"best\n{what}", *attacked, "bytes", "time"):
        result.add_column(head, justify="right", no_wrap=True)
    for k, (group, row) in enumerate(zip(groups, rows(groups), strict=True)):
        title = Text(row.name, style="bold")
        title.append(f"\n{row.strategy}", style="not bold")
        for key, values in unlike.items():
            if values[k] not in (ABSENT, "[]"):
                title.append(f"\n{key} = {values[k]}", style="not bold dim")
        result.add_row(
            title,
            f"{row.rounds:g}",
            _measured(name, row.final, group),
            _measured(name, row.best, group),
            *(_measured("backdoor", row.backdoor, group) for _ in attacked),
            units.nbytes(row.nbytes),
            units.duration(row.seconds),
            end_section=k + 1 < len(groups),
        )
    return result


def page(groups: Sequence[Group]) -> str:
    """The comparison as HTML text."""
    name, unlike = judged_by(groups), differences(groups)
    what = units.label(name) if name else "measure"
    attacked = ["final backdoor"] if backdoors(groups) else []
    heads = ["run", "strategy", "rounds", f"final {what}", f"best {what}", *attacked, "bytes", "time"]
    cells = [
        [
            row.name,
            row.strategy,
            row.rounds,
            [row.final and row.final[0], _measured(name, row.final, group)],
            [row.best and row.best[0], _measured(name, row.best, group)],
            *([row.backdoor and row.backdoor[0], _measured("backdoor", row.backdoor, group)] for _ in attacked),
            [row.nbytes, units.nbytes(row.nbytes)],
            [row.seconds, units.duration(row.seconds)],
            *(values[k] for values in unlike.values()),
        ]
        for k, (group, row) in enumerate(zip(groups, rows(groups), strict=True))
    ]
    charts = {}
    for name in metrics(groups):
        traces = [trace for i, group in enumerate(groups) if (trace := curve(group, name, i))]
        charts[name] = {"label": units.label(name), "share": units.is_share(name), "traces": traces}
    data = {
        "charts": charts,
        "table": {
            "columns": [
                *({"name": head, "right": head not in ("run", "strategy")} for head in heads),
                *({"name": key} for key in unlike),
            ],
            "rows": cells,
        },
    }
    return document(f"{len(groups)} experiments · fedopt", _body(groups, bool(charts)), data, ["compare.js"])


def _body(groups: Sequence[Group], drawn: bool) -> str:
    count = sum(len(group.runs) for group in groups)
    said = f"{len(groups)} experiments" + (f", {count} runs" if count != len(groups) else "")
    band = any(len(group.runs) > 1 for group in groups)
    note = '<p class="note">Bands and ± are one standard deviation over the seeds.</p>' if band else ""
    picture = (
        '<div class="bar"><select id="metric" aria-label="measure"></select>'
        '<span class="choice" id="axis" role="group" aria-label="horizontal axis"></span>'
        '<label class="tick"><input type="checkbox" id="log">log scale for losses</label></div>'
        f'<div class="card"><div class="plot tall" id="curves"></div>{note}</div>'
        if drawn
        else '<p class="call">None of the runs has measured anything yet.</p>'
    )
    return "\n".join(
        [
            "<main>",
            f"<header><h1>{escape(' against '.join(g.name for g in groups) if len(groups) <= 3 else said)}</h1>"
            f'<p class="lead">{escape(said)}</p></header>',
            "<noscript><p class='call'>The picture and the table below need JavaScript.</p></noscript>",
            picture,
            '<div class="bar"><h2>Runs</h2></div><div class="card" id="runs"></div>',
            "</main>",
        ]
    )
