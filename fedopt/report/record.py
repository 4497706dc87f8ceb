"""A run folder as values: its config, what ran, who holds what data, and one line per exchange."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedopt.types import FedoptError

Line = Mapping[str, Any]
"""One line of `metrics.jsonl`: what happened in one exchange."""

Axis = Literal["round", "exchange", "bytes", "seconds", "updates", "rounds_f", "rounds_g", "messages", "time"]
"""What a series is drawn against; bytes (up and down), seconds and client updates are totals since the start.

The last four are counters that methods under data similarity keep: rounds with each group of clients, messages, and
transmission time in whole vectors.
"""

COUNTERS: tuple[Axis, ...] = ("rounds_f", "rounds_g", "messages", "time")

METRICS: dict[str, bool] = {
    "accuracy": True,
    "client_eval.score": True,
    "loss": False,
    "client_eval.loss": False,
    "train_loss": False,
}
"""Measures of a model by name, the telling ones first; True where more is better."""


class RunRecord(NamedTuple):
    """Everything that a run folder says."""

    config: dict[str, Any]
    info: dict[str, Any]
    partition: dict[str, Any]
    lines: list[dict[str, Any]]
    path: Path

    @property
    def name(self) -> str:
        """The run's name, or its folder's."""
        return str(self.info.get("name") or self.path.name)


class Series(NamedTuple):
    """Points of a curve; both lists have the same length."""

    x: list[float]
    y: list[float]


class Mark(NamedTuple):
    """A value and the round in which it was measured."""

    value: float
    round: int


class Totals(NamedTuple):
    """Sums over all exchanges of a run."""

    rounds: int
    exchanges: int
    asked: int
    answered: int
    updates: int
    """Answers that were accepted."""
    rejected: int
    bytes_up: int
    bytes_down: int
    seconds: float
    phases: dict[str, float]
    """Seconds by phase (plan, map, absorb, evaluate ...)."""


def read(path: str | Path) -> RunRecord:
    """The record of the run folder `path`; the run may be going on still, or have been killed.

    An incomplete last line of `metrics.jsonl` is what a killed run leaves behind, and is ignored.

    Raises FedoptError where a file is missing or damaged, and where an exchange stands in the record twice.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FedoptError(f"{folder}: a run folder was needed, but there is no such folder")
    names = ("config.toml", "run.json", "partition.json", "metrics.jsonl")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FedoptError(
            f"{folder}: not a complete run folder, {' and '.join(missing)} missing; give the folder that the run "
            f"wrote (run.out in its config)"
        )
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedoptError(f"{folder / 'config.toml'}: not readable as TOML: {error}") from error
    info, partition = _object(folder / "run.json"), _object(folder / "partition.json")
    return RunRecord(config, info, partition, _lines(folder / "metrics.jsonl"), folder)


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FedoptError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise FedoptError(f"{file}: a JSON object was needed, {type(value).__name__} was given")
    return value


def _lines(file: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    seen: set[int] = set()
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
                exchange = int(line["exchange"])
                int(line["round"])
            except (ValueError, TypeError, KeyError) as error:
                if not raw.endswith(b"\n"):  # the writer ends every line, so this one was cut off
                    break
                raise FedoptError(
                    f"{file}:{number}: one JSON object with 'exchange' and 'round' was needed, "
                    f"{raw[:60].decode(errors='replace').strip()!r} was given; the file is damaged"
                ) from error
            if exchange in seen:
                raise FedoptError(
                    f"{file}:{number}: exchange {exchange} is recorded a second time; two runs wrote to one folder: "
                    f"give each its own run.out"
                )
            seen.add(exchange)
            lines.append(line)
    return lines


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for everything else (NaN, null, text, truth values)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of more than 300 digits
        return None
    return found if math.isfinite(found) else None


def at(line: Line, name: str) -> float | None:
    """The number `name` of a line, None where it is absent or not finite; `recall.N` is N within `recall`."""
    head, _, rest = name.partition(".")
    value = line.get(head)
    if rest:
        value = value.get(rest) if isinstance(value, Mapping) else None
    return number(value)


def positions(record: RunRecord, against: Axis) -> list[float]:
    """Where each line of the record stands on the axis `against`."""
    if against in ("round", "exchange"):
        return [float(line[against]) for line in record.lines]
    if against not in ("bytes", "seconds", "updates", *COUNTERS):
        raise FedoptError(
            f"against: round, exchange, bytes, seconds, updates, {', '.join(COUNTERS)} were possible,"
            f" {against!r} was given"
        )
    found, total = [], 0.0
    for line in record.lines:
        if against in COUNTERS:
            counted = at(line, f"info.{against}")
            total = total if counted is None else counted
        elif against == "bytes":
            total += (at(line, "bytes_up") or 0) + (at(line, "bytes_down") or 0)
        elif against == "updates":
            total += len(line.get("clients") or ()) if trains(line) else 0
        else:
            total = _elapsed(line, total)
        found.append(total)
    return found


def trains(line: Line) -> bool:
    """Whether clients sent what they computed, and not the answer to a survey alone."""
    return not str(line.get("program", "")).startswith("survey.")


def _elapsed(line: Line, before: float) -> float:
    """Seconds since the start; a line without `elapsed` adds what its phases took."""
    given = at(line, "elapsed")
    return before + sum(_phases(line).values()) if given is None else given


def _phases(line: Line) -> dict[str, float]:
    seconds = line.get("seconds")
    if not isinstance(seconds, Mapping):
        return {}
    return {str(phase): value for phase in seconds if (value := number(seconds[phase])) is not None}


def series(record: RunRecord, name: str, against: Axis = "round") -> Series:
    """The number `name` (`accuracy`, `recall.N`, `client_eval.score`, `info.trust` ...) wherever it was measured."""
    points = [
        (x, y)
        for x, line in zip(positions(record, against), record.lines, strict=True)
        if (y := at(line, name)) is not None
    ]
    return Series([x for x, _ in points], [y for _, y in points])


def fields(record: RunRecord, group: str) -> list[str]:
    """Names of the numbers that stand under `group` (`recall`, `info`) in any line, in the order of appearance."""
    names: dict[str, None] = {}
    for line in record.lines:
        inner = line.get(group)
        if isinstance(inner, Mapping):
            names.update(dict.fromkeys(str(key) for key in inner if key and number(inner[key]) is not None))
    return list(names)


def weights(line: Line) -> dict[int, float]:
    """The weight that each client's update was given in this exchange, by client; empty where the rule told none.

    As recorded, or divided by their sum where that is more than 1. Clients without a finite number are left out.
    """
    info = line.get("info")
    told = info.get("trust") if isinstance(info, Mapping) else None
    if not isinstance(told, Mapping):
        return {}
    found = {
        int(client): weight
        for client, value in told.items()
        if str(client).isdecimal() and len(str(client)) < 19 and (weight := number(value)) is not None
    }
    total = sum(map(abs, found.values()))
    return {client: weight / total for client, weight in found.items()} if total > 1 else found


def kept_reason(line: Line) -> str | None:
    """Why the server's model stayed as it was after this exchange (may be empty); None where it moved."""
    info = line.get("info")
    told = info.get("kept_model") if isinstance(info, Mapping) else None
    if isinstance(told, str) and told.strip():
        return " ".join(told.split())
    return "" if told is True else None


def kept(record: RunRecord) -> dict[int, str]:
    """The rounds in which the model stayed as it was, each with the reason."""
    return {int(line["round"]): why for line in record.lines if (why := kept_reason(line)) is not None}


def headline(record: RunRecord) -> str | None:
    """The measure to judge the run by: the first of `METRICS` that it has, None before the first measurement."""
    return next((name for name in METRICS if any(True for _ in _marks(record, name))), None)


def final(record: RunRecord, name: str | None = None) -> Mark | None:
    """The last measured value of `name` (default: the headline)."""
    marks = list(_marks(record, name or headline(record)))
    return marks[-1] if marks else None


def best(record: RunRecord, name: str | None = None) -> Mark | None:
    """The best measured value of `name` (default: the headline); the first one of equals."""
    name = name or headline(record)
    sign = 1 if METRICS.get(name or "", True) else -1
    return max(_marks(record, name), key=lambda mark: sign * mark.value, default=None)


def rounds_to(record: RunRecord, target: float, name: str | None = None) -> int | None:
    """The first round in which `name` (default: the headline) was as good as `target`; None if it never was."""
    name = name or headline(record)
    up = METRICS.get(name or "", True)
    hits = (m.round for m in _marks(record, name) if (m.value >= target if up else m.value <= target))
    return next(hits, None)


def _marks(record: RunRecord, name: str | None) -> Iterator[Mark]:
    for line in record.lines if name else ():
        if (value := at(line, name or "")) is not None:
            yield Mark(value, int(line["round"]))


def totals(record: RunRecord) -> Totals:
    """Sums over the whole run; all zero before the first exchange."""
    phases: dict[str, float] = {}
    for line in record.lines:
        for phase, seconds in _phases(line).items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    return Totals(
        rounds=max((int(line["round"]) for line in record.lines), default=0),
        exchanges=len(record.lines),
        asked=int(_sum(record, "asked")),
        answered=int(_sum(record, "answered")),
        updates=sum(len(line.get("clients") or ()) for line in record.lines if trains(line)),
        rejected=sum(len(line.get("rejected") or ()) for line in record.lines),
        bytes_up=int(_sum(record, "bytes_up")),
        bytes_down=int(_sum(record, "bytes_down")),
        seconds=max(positions(record, "seconds"), default=0.0),
        phases=phases,
    )


def _sum(record: RunRecord, name: str) -> float:
    return sum(at(line, name) or 0 for line in record.lines)
