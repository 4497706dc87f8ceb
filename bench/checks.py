"""What fedopt promises of its speed, each computed from the stored results."""

from __future__ import annotations

from typing import NamedTuple

from bench.results import Cell, Results
from bench.tasks import TASKS

IN_PROCESS = ("fedopt-serial", "fedopt-serial-threads", "fedopt-stacked", "fedopt-stacked-threads")
FIXED = (*IN_PROCESS, "fedopt-ray-serial", "fedopt-ray-stacked")
PEERS = ("pfl", "pfl-threads", "pfl-processes", "flower", "flower-quickstart")
FUSED = ("pfl-fused", "pfl-threads-fused", "pfl-processes-fused", "flower-fused")
"""Peers with torch's own LSTM in place of the network that everybody else trains: the same function."""


class Check(NamedTuple):
    """One promise: what was measured against what is needed. `at_most` where less is better."""

    what: str
    unit: str
    needed: float
    measured: float | None
    """None: a cell that it needs is not measured."""
    note: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.needed if self.at_most else self.measured >= self.needed

    @property
    def margin(self) -> float | None:
        """How far on the good side, as a share of what is needed; negative where it is missed."""
        if self.measured is None:
            return None
        share = self.measured / self.needed - 1.0
        return -share if self.at_most else share


def checks(results: Results) -> list[Check]:
    """All promises, in the order of the page."""
    return [*_mlp(results), *_cnn(results), *_auto(results), *_null(results), *_dormant(results)]


def _mlp(results: Results) -> list[Check]:
    found = []
    for task, times in (("mlp-100", 15.0), ("mlp-1000", 25.0)):
        title = TASKS[task].title
        ours = results.best(task, "fedopt-*")
        pfl = results.best(task, "pfl", "pfl-threads")
        spread = results.get(task, "pfl-processes")
        note = _against(ours, pfl)
        if ours is not None and spread is not None:
            note += f"; against {spread.title}: {ours.rate / spread.rate:.1f}"
        found.append(Check(f"{title}: fedopt against pfl in one process", "times", times, _ratio(ours, pfl), note))
    for task in ("mlp-100", "mlp-1000"):
        ours, flower = results.best(task, "fedopt-*"), results.get(task, "flower-quickstart")
        what = f"{TASKS[task].title}: fedopt against Flower's simulation, with the app of its quickstart"
        kept = results.get(task, "flower")
        note = _against(ours, flower)
        if ours is not None and kept is not None:
            note += f"; against an app that keeps data and network: {ours.rate / kept.rate:.0f}"
        found.append(Check(what, "times", 400.0, _ratio(ours, flower), note))
    return found


def _cnn(results: Results) -> list[Check]:
    ours = results.best("cnn", "fedopt-*")
    pfl, loop = results.get("cnn", "pfl-threads"), results.best("cnn", "plain", "plain-threads")
    found = [
        Check("CNN: fedopt against pfl in one process with all threads", "times", 1.7, _ratio(ours, pfl),
              _against(ours, pfl) + _beside(ours, results.get("cnn", "pfl-processes"))),
        Check("CNN: fedopt against the plain loop on all cores", "times", 0.9, _ratio(ours, loop),
              _against(ours, loop) + _beside(ours, results.get("cnn", "plain-processes"))),
    ]  # fmt: skip
    return found


def _auto(results: Results) -> list[Check]:
    found = []
    for name, task in TASKS.items():
        auto = results.get(name, "fedopt-auto")
        fixed, peer = results.best(name, *FIXED), results.best(name, *PEERS)
        chosen = auto.raw.get("plan", {}).get("choice") if auto is not None else None
        note = f"chose {chosen}; " if chosen else ""
        found.append(
            Check(f"{task.title}: auto against its best fixed executor", "times", 0.95, _ratio(auto, fixed),
                  note + _against(auto, fixed))
        )  # fmt: skip
        if task.peers:
            loop = results.best(name, "plain*")
            found.append(
                Check(f"{task.title}: auto against the fastest peer", "times", 0.97, _ratio(auto, peer),
                      _against(auto, peer) + _beside(auto, loop))
            )  # fmt: skip
    auto, fused = results.get("lstm", "fedopt-auto"), results.best("lstm", *FUSED)
    what = f"{TASKS['lstm'].title}: auto against the fastest peer with torch.nn.LSTM"
    return [*found, Check(what, "times", 0.97, _ratio(auto, fused), _against(auto, fused))]


def _null(results: Results) -> list[Check]:
    small, large = results.best("null-4810", *IN_PROCESS), results.best("null-1.6m", *IN_PROCESS)
    ray = results.best("null-4810", "fedopt-ray-*")
    peer = results.best("null-1.6m", *PEERS)
    unit = "exchanges/s"
    return [
        Check("Null work, 4,810 parameters, cohort 50, in one process", unit, 500.0, _exchanges(small),
              _named(small) + _floor(results, small)),
        Check("Null work, 4,810 parameters, cohort 50, over Ray", unit, 40.0, _exchanges(ray), _named(ray)),
        Check("Null work, 1,626,442 parameters, cohort 50, in one process", unit, 5.0, _exchanges(large),
              _named(large) + _floor(results, large)),
        Check("Null work, 1,626,442 parameters: fedopt in one process against the fastest peer", "times", 1.0,
              _ratio(large, peer), _against(large, peer)),
    ]  # fmt: skip


def _dormant(results: Results) -> list[Check]:
    many, few = results.get("dormant-1e6", "fedopt-auto"), results.get("dormant-1e4", "fedopt-auto")
    growth = many.seconds / few.seconds if many is not None and few is not None else None
    memory = many.raw["peak_memory_bytes"] / 1e9 if many is not None else None
    return [
        Check("1,000,000 clients, 1,000 per round: start-up of auto", "s", 10.0,
              many.raw["startup_s"] if many is not None else None, at_most=True),
        Check("1,000,000 clients, 1,000 per round: peak memory of auto", "GB", 2.0, memory, at_most=True),
        Check("1,000,000 clients against 10,000: seconds per round of auto", "times", 1.1, growth, at_most=True),
    ]  # fmt: skip


def floor_seconds(results: Results, cell: Cell) -> float | None:
    """What one null exchange takes at least: every answer written once and read once, at the speed of a copy."""
    speed = results.machine.get("limits", {}).get("copy_gb_per_s_1")
    if not speed:
        return None
    return float(4.0 * cell.raw["parameters"] * cell.raw["cohort"] / (speed * 1e9))


def _floor(results: Results, cell: Cell | None) -> str:
    least = floor_seconds(results, cell) if cell is not None else None
    if cell is None or least is None:
        return ""
    moved = 4e-6 * cell.raw["parameters"] * cell.raw["cohort"]
    speed = results.machine["limits"]["copy_gb_per_s_1"]
    return (
        f"; floor: {moved:.1f} MB of answers at {speed:.1f} GB/s is {least * 1e3:.2f} ms, the exchange takes"
        f" {cell.seconds * 1e3:.2f} ms"
    )


def _exchanges(cell: Cell | None) -> float | None:
    return None if cell is None else 1.0 / cell.seconds


def _ratio(ours: Cell | None, theirs: Cell | None) -> float | None:
    return None if ours is None or theirs is None else ours.rate / theirs.rate


def _named(cell: Cell | None) -> str:
    return "" if cell is None else cell.title


def _against(ours: Cell | None, theirs: Cell | None) -> str:
    if ours is None or theirs is None:
        return ""
    return f"{ours.title} {_number(ours.rate)}/s, {theirs.title} {_number(theirs.rate)}/s"


def _beside(ours: Cell | None, other: Cell | None) -> str:
    return "" if ours is None or other is None else f"; against {other.title}: {ours.rate / other.rate:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
