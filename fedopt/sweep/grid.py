"""The file of a sweep: a base experiment, axes of named settings, seeds; and the cells that they span.

An axis is a table of settings, a setting a table of changes. A change is a section that is merged over the one below it
(as a config over its `base`), or a quoted path, of which `*` stands for every item of a list:

    [sweep.axes.attack]
    none = { attack = [] }
    ipm = { attack = [{ name = "ipm" }] }
    [sweep.axes.share]
    fifth = { "attack.*.share" = 0.2 }

Axes are applied in the order of the file, then the `[[sweep.where]]` that match.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from fedopt import config as configs
from fedopt.config import Config
from fedopt.registry import ConfigError, nearest
from fedopt.report.sweep import MEASURES, is_measure

UNHASHED = ("name", "out", "track", "checkpoint_every", "checkpoint_seconds", "keep_checkpoints")
"""Keys of [run] that no number depends on."""

FIXED = {
    "name": "a cell is named after its settings",
    "out": "a cell lies in a folder of its own",
    "seed": "the seeds of all cells are sweep.seeds",
}
"""Keys of [run] that a setting cannot change, and why."""

RESERVED = ("seed", "set")
"""What an axis cannot be called."""

Changes = Mapping[str, Any]


class Spec(pydantic.BaseModel):
    """The section [sweep]."""

    model_config = pydantic.ConfigDict(extra="forbid")
    axes: dict[str, dict[str, dict[str, Any]]]
    """By axis, its settings by name."""
    name: str | None = pydantic.Field(None, min_length=1)
    out: str | None = None
    """Folder of the results; `runs/<name>` by default."""
    seeds: list[pydantic.NonNegativeInt] = pydantic.Field([], min_length=1)
    """run.seed of the base by default."""
    metric: str = "accuracy"
    at: str | int = "last"
    """`last`, `best`, or a number: the mean of so many last evaluations."""
    rows: str | None = None
    """The axis that is compared and ranked."""
    columns: str | None = None
    """The axis of which the worst is looked for."""
    reports: bool = True
    """A report.html for every cell."""
    where: list[dict[str, Any]] = []
    """Changes (`set`) to the cells that match."""
    skip: list[dict[str, Any]] = []
    """Cells that are left out."""

    @pydantic.field_validator("metric")
    @classmethod
    def _measured(cls, value: str) -> str:
        if not is_measure(value):
            known = [*MEASURES, "backdoor.ATTACK"]
            raise ValueError(f"no such measure.{nearest(value, known)} Known: {', '.join(known)}")
        return value

    @pydantic.field_validator("at")
    @classmethod
    def _taken(cls, value: str | int) -> str | int:
        if value not in ("last", "best") and not (isinstance(value, int) and value > 0):
            raise ValueError("'last', 'best' or a number of last evaluations is needed")
        return value


class Cell(NamedTuple):
    """One experiment of a sweep."""

    settings: dict[str, str]
    """The setting of each axis."""
    seed: int
    config: Config
    key: str
    """`fingerprint` of the config, and the name of the cell's folder."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run. Cells may have the same key; they are one run."""

    name: str
    out: Path
    folder: Path
    """Where the cells lie: a folder of the sweep, or a cache that several sweeps share."""
    axes: dict[str, tuple[str, ...]]
    rows: str
    columns: str | None
    seeds: tuple[int, ...]
    metric: str
    at: str | int
    reports: bool
    cells: tuple[Cell, ...]

    @property
    def runs(self) -> dict[str, Cell]:
        """The first cell of each key."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            found.setdefault(cell.key, cell)
        return found

    def label(self, cell: Cell) -> str:
        """`krum · ipm · seed 1`, without the seed where there is one."""
        seed = [f"seed {cell.seed}"] if len(self.seeds) > 1 else []
        return " · ".join([*cell.settings.values(), *seed])


def fingerprint(config: Config) -> str:
    """A hash of everything in a config that its numbers depend on, defaults of the components included.

    A default that is given has the hash of one left out, and where a default changes, so does the hash.
    """
    document = config.document()
    for key in UNHASHED:
        document["run"].pop(key, None)
    for section, registry in configs.SECTIONS.items():
        for table in _tables(document, section.split(".")):
            with contextlib.suppress(ConfigError):  # what cannot be found is refused where it is built
                for option in registry.options(table["name"]).values():
                    if not option.required:
                        table.setdefault(option.name, option.default)
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _tables(document: Any, path: Sequence[str]) -> list[dict[str, Any]]:
    """The tables at a path, through lists on the way; those of a component have a name."""
    if isinstance(document, list):
        return [table for item in document for table in _tables(item, path)]
    if not isinstance(document, dict):
        return []
    if path:
        return _tables(document.get(path[0]), path[1:])
    return [document] if "name" in document else []


def stored_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the experiment in a run folder; None where its config cannot be read."""
    try:
        return fingerprint(configs.parse(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError):
        return None


def read(path: Path, changes: Sequence[str] = (), *, out: Path | None = None, cache: Path | None = None) -> Sweep:
    """The sweep in a file. `changes` are `a.b=value`, of the base experiment or of `sweep.` itself.

    Raises ConfigError for everything that is wrong with any cell and can be known without building it.
    """
    document = configs.read_file(path)
    table = document.pop("sweep", None)
    if not isinstance(table, dict):
        raise ConfigError(
            "sweep", f"{path} has no section [sweep] with axes, e.g. [sweep.axes.rule]; 'fedopt run' runs an experiment"
        )
    for change in changes:
        where, value = configs.parse_change(change)
        if where[0] == "sweep":  # keys of [run] do not depend on its name, and nor do these
            configs.assign({"run": table}, ["run", *where[1:]], value)
        else:
            configs.assign(document, where, value)
    base = configs.parse(document).document()
    spec = _spec(table)
    axes = {axis: tuple(settings) for axis, settings in spec.axes.items()}
    rows, columns = _sides(spec, axes)
    name = spec.name or path.stem
    out = out or Path(spec.out or Path("runs") / name)
    return Sweep(
        name=name,
        out=out,
        folder=cache or out / "cells",
        axes=axes,
        rows=rows,
        columns=columns,
        seeds=tuple(spec.seeds or [base["run"]["seed"]]),
        metric=spec.metric,
        at=spec.at,
        reports=spec.reports,
        cells=tuple(_cells(base, spec)),
    )


def _spec(table: Mapping[str, Any]) -> Spec:
    try:
        spec = Spec.model_validate_json(json.dumps(table), strict=True)
    except TypeError as error:
        raise ConfigError("sweep", f"only numbers, words, lists and tables are allowed: {error}") from None
    except pydantic.ValidationError as error:
        raise _first(error) from None
    if not spec.axes:
        raise ConfigError("sweep.axes", "an axis is needed, e.g. [sweep.axes.rule] mean = { aggregator = 'mean' }")
    for axis, settings in spec.axes.items():
        if axis in RESERVED:
            raise ConfigError(f"sweep.axes.{axis}", f"an axis cannot be called {' or '.join(RESERVED)}; rename it")
        if not settings:
            raise ConfigError(f"sweep.axes.{axis}", "a setting is needed, e.g. mean = { aggregator = 'mean' }")
    if len(set(spec.seeds)) < len(spec.seeds):
        raise ConfigError("sweep.seeds", f"each seed once is needed; {spec.seeds} was given")
    for section, entries in (("where", spec.where), ("skip", spec.skip)):
        for number, entry in enumerate(entries):
            _check_condition(f"sweep.{section}.{number}", entry, spec.axes, section == "where")
    return spec


def _first(error: pydantic.ValidationError) -> ConfigError:
    first = error.errors()[0]
    where = ".".join(["sweep", *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        known = list(Spec.model_fields)
        return ConfigError(where, f"unknown key.{nearest(str(first['loc'][-1]), known)} Known: {', '.join(known)}")
    if first["type"] == "missing":
        return ConfigError(where, "missing; it is needed here")
    if first["loc"][0] == "at":  # one complaint for each type that it may have
        where = "sweep.at"
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ConfigError(where, f"{said}; {first['input']!r} was given")


def _known(where: str, name: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if name not in known:
        raise ConfigError(where, f"no {what} '{name}'.{nearest(name, known)} Known: {', '.join(known)}")


def _check_condition(where: str, entry: Changes, axes: Mapping[str, Mapping[str, Any]], changes: bool) -> None:
    """Names of an entry of `where` or `skip` have to be those of axes and settings."""
    conditions = {axis: value for axis, value in entry.items() if axis != "set"}
    if changes != isinstance(entry.get("set"), dict):
        raise ConfigError(
            f"{where}.set", "a table of changes is needed" if changes else "to skip a cell changes nothing; remove it"
        )
    if not conditions:
        axis, settings = next(iter(axes.items()))
        raise ConfigError(where, f"a condition is needed, e.g. {axis} = '{next(iter(settings))}'")
    for axis, value in conditions.items():
        _known(f"{where}.{axis}", axis, axes, "axis")
        for name in _names(value):
            _known(f"{where}.{axis}", name, axes[axis], "setting")


def _names(value: Any) -> list[str]:
    """Settings of a condition: one, or a list; a number stands for the setting that is called so."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _sides(spec: Spec, axes: Mapping[str, Sequence[str]]) -> tuple[str, str | None]:
    """Which axes are the rows and the columns of the tables: `rule` and `attack`, or the first two."""
    for key in ("rows", "columns"):
        if (axis := getattr(spec, key)) is not None:
            _known(f"sweep.{key}", axis, axes, "axis")
    free = [axis for axis in axes if axis != spec.columns]
    rows = spec.rows or ("rule" if "rule" in free else next(iter(free), None))
    if rows is None or rows == spec.columns:
        raise ConfigError("sweep.columns", f"'{spec.columns}' is the axis of the rows; name another, or leave it out")
    free = [axis for axis in axes if axis != rows]
    columns = spec.columns or ("attack" if "attack" in free else next(iter(free), None))
    return rows, columns


def _cells(base: Mapping[str, Any], spec: Spec) -> list[Cell]:
    cells = []
    seeds = spec.seeds or [base["run"]["seed"]]
    for combination in itertools.product(*(settings.items() for settings in spec.axes.values())):
        settings = {axis: name for axis, (name, _) in zip(spec.axes, combination, strict=True)}
        if any(_matches(entry, settings) for entry in spec.skip):
            continue
        changes = [changes for _, changes in combination]
        changes += [entry["set"] for entry in spec.where if _matches(entry, settings)]
        config = _config(base, settings, changes)
        label = " · ".join(settings.values())
        for seed in seeds:
            run = config.run.model_copy(update={"seed": seed, "name": label, "out": None})
            seeded = config.model_copy(update={"run": run})
            cells.append(Cell(settings, seed, seeded, fingerprint(seeded)))
    if not cells:
        raise ConfigError("sweep.skip", "every cell is skipped; leave one")
    return cells


def _matches(entry: Changes, settings: Mapping[str, str]) -> bool:
    return all(settings[axis] in _names(value) for axis, value in entry.items() if axis != "set")


def _config(base: Mapping[str, Any], settings: Mapping[str, str], changes: Iterable[Changes]) -> Config:
    """The experiment of a cell, checked. Raises ConfigError with the cell's settings."""
    try:
        document = dict(base)
        for each in changes:
            document = changed(document, each)
        for key, reason in FIXED.items():
            if document["run"].get(key) != base["run"].get(key):
                raise ConfigError(f"run.{key}", f"no setting can change it: {reason}")
        return configs.check_document(document)
    except ConfigError as error:
        cell = ", ".join(f"{axis} = {name}" for axis, name in settings.items())
        reason = str(error).removeprefix(f"{error.where}: ")
        raise ConfigError(error.where, f"{reason} (in the cell {cell})") from None


def changed(document: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A document with the changes of a setting: sections merged over its own, and paths set, `*` being every item."""
    found = dict(document)
    for key, value in changes.items():
        path = key.split(".")
        if len(path) == 1:
            found = configs.merge(found, {key: _table(key, value)})
            continue
        found = copy.deepcopy(found)  # a path reaches into tables that other cells share
        for each in _every(found, path):
            configs.assign(found, each, copy.deepcopy(value))
    return found


def _table(section: str, value: Any) -> Any:
    """Components that are given as words, as tables, which alone can be merged."""
    if section in configs.WORDS and isinstance(value, str):
        return {"name": value}
    if section == "attack" and isinstance(value, Mapping):
        return [value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: {"name": inner} if isinstance(inner, str) and f"{section}.{key}" in configs.SECTIONS else inner
        for key, inner in value.items()
    }


def _every(document: Mapping[str, Any], path: Sequence[str]) -> list[list[str]]:
    """The path for each item that its `*` stand for: none where a list is empty."""
    if "*" not in path:
        return [list(path)]
    star = path.index("*")
    here: Any = document
    for part in path[:star]:
        here = dict(enumerate(here)) if isinstance(here, list) else here
        here = here.get(int(part) if part.isdigit() else part) if isinstance(here, Mapping) else None
    if not isinstance(here, list):
        raise ConfigError(".".join(path), f"'*' stands for every item of a list, and {'.'.join(path[:star])} is none")
    found = [_every(document, [*path[:star], str(i), *path[star + 1 :]]) for i in range(len(here))]
    return list(itertools.chain.from_iterable(found))
