"""The stored results of one machine, and the figures computed from them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One arm on one task, as stored."""

    raw: dict[str, Any]

    @property
    def arm(self) -> str:
        return str(self.raw["arm"])

    @property
    def title(self) -> str:
        return str(self.raw["title"])

    @property
    def failed(self) -> str | None:
        reason = self.raw.get("failed")
        return None if reason is None else str(reason)

    @property
    def round_seconds(self) -> list[float]:
        """Seconds per round of each repetition."""
        return [r["seconds"] / r["rounds"] for r in self.raw["repetitions"]]

    @property
    def seconds(self) -> float:
        """Median over the repetitions of the seconds per round."""
        return statistics.median(self.round_seconds)

    @property
    def rates(self) -> list[float]:
        """Client updates per second of each repetition."""
        return [self.raw["cohort"] / seconds for seconds in self.round_seconds]

    @property
    def rate(self) -> float:
        """Median over the repetitions of the client updates per second."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Results:
    """What is stored for one machine."""

    machine: dict[str, Any]
    cells: dict[tuple[str, str], Cell]
    """By task and arm; failed cells too."""
    others: dict[str, dict[str, Any]]
    """Other measurements by the name of their file: profiles, memory over time, a GPU."""

    def get(self, task: str, arm: str) -> Cell | None:
        """The cell, if it was measured without a failure."""
        cell = self.cells.get((task, arm))
        return cell if cell is not None and cell.failed is None and cell.raw["repetitions"] else None

    def best(self, task: str, *arms: str) -> Cell | None:
        """The fastest of these arms on a task; a name that ends with `*` stands for all that begin so."""
        found = [cell for (t, arm), cell in self.cells.items() if t == task and _named(arm, arms)]
        measured = [cell for cell in found if self.get(task, cell.arm) is not None]
        return max(measured, key=lambda cell: cell.rate, default=None)

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for task, _ in self.cells))


def _named(arm: str, patterns: tuple[str, ...]) -> bool:
    return any(arm.startswith(p[:-1]) if p.endswith("*") else arm == p for p in patterns)


def read(folder: Path) -> Results:
    """All results of a folder; a cell's file is named `<task>.<arm>.json`."""
    machine, cells, others = {}, {}, {}
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text())
        if path.name == "machine.json":
            machine = value
        elif "arm" in value and "repetitions" in value:
            cells[value["task"], value["arm"]] = Cell(value)
        else:
            others[path.stem] = value
    return Results(machine, cells, others)
