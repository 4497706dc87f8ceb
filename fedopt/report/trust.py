"""The trust part of the report: what weight the aggregation rule gave to whom, and when it kept the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean as mean
from typing import Any, NamedTuple

from fedopt.report import clients as people
from fedopt.report import record as run
from fedopt.report.record import Line, RunRecord

ROWS_DRAWN = 50
"""The most clients of which each has a row in the heat map of trust."""
BRIGHTEST = 0.99
"""The share of the weights that the heat map tells apart; a few larger ones have the colour of its end."""


class Cell(NamedTuple):
    """What was told in some rounds that follow each other."""

    trust: dict[int, list[float]]
    """The weights of each client's updates."""
    weight: list[float]
    """The weight on all attackers, by exchange."""
    cohort: list[float]
    """The attackers' share of the answers, by exchange."""
    kept: dict[int, str]
    """The rounds in which the model was kept, with the reasons."""


def pictures(record: RunRecord) -> dict[str, Any]:
    """The data of the pictures of trust by name, without those of which there is nothing to show.

    `trust` is the heat map of every client, of more than `ROWS_DRAWN` clients `trusts` draws the spread; `weight`
    compares the attackers' weight with their share of the answers.
    """
    attackers = people.attacking(record)
    starts, span, cells = _cells(record, attackers)
    trusted: set[int] = set().union(*(cell.trust for cell in cells))
    if not trusted:
        return {}
    found: dict[str, Any] = {}
    if len(trusted) <= ROWS_DRAWN:
        found["trust"] = _map(record, cells, trusted)
    else:
        groups = [
            ("honest clients" if attackers else "clients", trusted - attackers),
            ("attackers", trusted & attackers),
        ]
        found["trusts"] = {
            "lines": [
                {"name": name, "look": look, **_spread(starts, cells, members)}
                for look, (name, members) in enumerate(groups)
                if members
            ]
        }
    if attackers:
        at = [i for i, cell in enumerate(cells) if cell.weight]
        x = [starts[i] for i in at]
        cohort, weight = [mean(cells[i].cohort) for i in at], [mean(cells[i].weight) for i in at]
        found["weight"] = {
            "lines": [
                {"name": "their share of the answers", "look": 6, "dash": "dash", "x": x, "y": cohort},
                {"name": "weight on attackers", "look": 1, "x": x, "y": weight},
            ]
        }
    marks = _marks(starts, cells)
    shared = {"rounds": starts, "span": span, "kept": marks}
    return {name: {**picture, **shared} for name, picture in found.items()}


def _cells(record: RunRecord, attackers: set[int]) -> tuple[list[int], int, list[Cell]]:
    """The first round of each cell, how many rounds a cell has, and the cells."""
    rounds = max(run.totals(record).rounds, 1)
    span = -(-rounds // people.COLUMNS)
    starts = list(range(1, rounds + 1, span))
    cells = [Cell({}, [], [], {}) for _ in starts]
    for line in record.lines:
        number = int(line["round"])
        cell = cells[(max(number, 1) - 1) // span]
        why = run.kept_reason(line)
        if why is not None:
            cell.kept[number] = why
        weights = run.weights(line)
        for client, weight in weights.items():
            cell.trust.setdefault(client, []).append(weight)
        if weights:
            members = answering(line) or weights.keys()
            cell.weight.append(sum(weight for client, weight in weights.items() if client in attackers))
            cell.cohort.append(len(attackers.intersection(members)) / len(members))
    return starts, span, cells


def answering(line: Line) -> set[int]:
    """The clients whose answers the exchange used."""
    return people.ids(line.get("clients"))


def _map(record: RunRecord, cells: Sequence[Cell], trusted: Iterable[int]) -> dict[str, Any]:
    """A row for each client, attackers first; None where a client was given no weight."""
    roles = people.roles(record)
    names = {client["client"]: people.name(client) for client in people.listed(record)}
    rows = sorted(trusted, key=lambda client: (client not in roles, client))
    values = [[mean(cell.trust[client]) if client in cell.trust else None for cell in cells] for client in rows]
    positive = sorted(value for row in values for value in row if value is not None and value > 0)
    most = positive[math.ceil(BRIGHTEST * len(positive)) - 1] if positive else 1.0
    return {
        "names": [names.get(client, f"client {client}") for client in rows],
        "roles": [roles.get(client, "") for client in rows],
        "values": values,
        "most": most,
        "above": bool(positive) and positive[-1] > 1.05 * most,
    }


def _spread(starts: Sequence[int], cells: Sequence[Cell], members: set[int]) -> dict[str, list[float]]:
    """Mean and 10 to 90 % of the weights of the members in each cell where they have any."""
    line: dict[str, list[float]] = {"x": [], "y": [], "low": [], "high": []}
    for start, cell in zip(starts, cells, strict=True):
        found = sorted(weight for client in members & cell.trust.keys() for weight in cell.trust[client])
        if found:
            line["x"].append(start)
            line["y"].append(mean(found))
            line["low"].append(quantile(found, 0.1))
            line["high"].append(quantile(found, 0.9))
    return line


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value below which a share q of the increasing values lies, between two of them in proportion."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _marks(starts: Sequence[int], cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Where the model was kept, and what is said of it."""
    marks: dict[str, list[Any]] = {"x": [], "text": []}
    for start, cell in zip(starts, cells, strict=True):
        if cell.kept:
            last = max(cell.kept)
            many = f"model kept in {len(cell.kept)} rounds, last in round {last}"
            what = many if len(cell.kept) > 1 else f"model kept in round {last}"
            marks["x"].append(start)
            marks["text"].append(f"{what}: {cell.kept[last]}" if cell.kept[last] else what)
    return marks
