"""Aggregation rules beside byzfl's, at 20 and 100 clients and a million parameters.

    python -m bench.rules [--n 20 100] [--rule krum ...] [--d 1000000] [--repetitions 5]

The two take turns, call by call, in one process with as many threads as cores; a figure is the median. byzfl has to be
importable here: `pip install --no-deps byzfl==0.0.11`. Nearest neighbour mixing is run once more in a process of its
own, for its peak memory beyond its input.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from bench import machine
from bench.processes import ROOT, environment
from bench.run import store
from bench.table import rows
from fedopt import aggregators, keys
from fedopt.aggregators import pre

Call = Callable[[Tensor], Any]
MB = 2**20
SLOW_S = 3.0
"""Calls slower than this are repeated less often."""

console = Console()


class Pair(NamedTuple):
    """A rule of ours and byzfl's, each made anew for n rows and f attackers."""

    ours: Callable[[int, int], Call]
    theirs: Callable[[Any, int, int], Call]
    sizes: tuple[int, ...] = (20, 100)
    writes: bool = False
    """byzfl's writes into its argument: it is timed with the copy that keeps it, as ours does, and once without."""
    why: str = ""
    """Where byzfl's is left out for n = 100."""


def rule(name: str, **options: Any) -> Call:
    built = aggregators.build(name, options)

    def call(updates: Tensor) -> Any:
        n, d = updates.shape
        return built.apply(
            updates, built.init(n), weights=torch.ones(n), clients=torch.arange(n), previous=updates.new_zeros(d)
        )

    return call


def step(name: str, **options: Any) -> Call:
    built = pre.build(name, options)

    def call(updates: Tensor) -> Any:
        n = updates.shape[0]
        return built.apply(updates, weights=torch.ones(n), clients=torch.arange(n), key=keys.root(0))

    return call


PAIRS: dict[str, Pair] = {
    "mean": Pair(lambda n, f: rule("mean"), lambda b, n, f: b.Average()),
    "median": Pair(lambda n, f: rule("median"), lambda b, n, f: b.Median()),
    "trimmed_mean": Pair(lambda n, f: rule("trimmed_mean", f=f), lambda b, n, f: b.TrMean(f)),
    "meamed": Pair(lambda n, f: rule("meamed", f=f), lambda b, n, f: b.Meamed(f)),
    "krum": Pair(lambda n, f: rule("krum", f=f), lambda b, n, f: b.Krum(f)),
    "multi_krum": Pair(lambda n, f: rule("krum", f=f, m=n - f), lambda b, n, f: b.MultiKrum(f)),
    "geometric_median": Pair(lambda n, f: rule("geometric_median"), lambda b, n, f: b.GeometricMedian()),
    "centered_clipping": Pair(
        lambda n, f: rule("centered_clipping", tau=1.0), lambda b, n, f: b.CenteredClipping(tau=1.0)
    ),
    "centered_clipping, 3 iterations": Pair(
        lambda n, f: rule("centered_clipping", tau=1.0, iterations=3), lambda b, n, f: b.CenteredClipping(L=3, tau=1.0)
    ),
    "monna": Pair(lambda n, f: rule("monna", f=f, pivot=n - 1), lambda b, n, f: b.MoNNA(f, n - 1)),
    "caf": Pair(lambda n, f: rule("caf", f=f), lambda b, n, f: b.CAF(f)),
    "mda": Pair(lambda n, f: rule("mda", f=f), lambda b, n, f: b.MDA(f), sizes=(20,)),
    "smea": Pair(lambda n, f: rule("smea", f=f), lambda b, n, f: b.SMEA(f), sizes=(20,)),
    "nnm": Pair(
        lambda n, f: step("nnm", f=f), lambda b, n, f: b.NNM(f), why="it would copy n (n - f) rows, 36 GB"
    ),
    "bucketing": Pair(lambda n, f: step("bucketing", s=2), lambda b, n, f: b.Bucketing(2)),
    "clipping": Pair(lambda n, f: step("clipping", bound=1.0), lambda b, n, f: b.Clipping(1.0), writes=True),
    "arc": Pair(lambda n, f: step("arc", f=f), lambda b, n, f: b.ARC(f), writes=True),
}  # fmt: skip


def attackers(n: int) -> int:
    return 3 if n <= 20 else n // 10


def population(n: int, d: int) -> Tensor:
    """Honest rows around a common direction, and attackers farther out."""
    generator = torch.Generator().manual_seed(n)
    updates = torch.randn(n, d, generator=generator)
    updates += torch.randn(d, generator=generator)
    updates[: attackers(n)] *= 3.0
    return updates


def seconds(call: Call, updates: Tensor) -> float:
    started = time.perf_counter()
    call(updates)
    return time.perf_counter() - started


def measure(byzfl: Any, pair: Pair, updates: Tensor, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call of either, after one call each that does not count (slow ones count at once)."""
    n = updates.shape[0]
    f = attackers(n)
    left_out = n == 100 and bool(pair.why)
    found: dict[str, list[float]] = {"fedopt": [], "byzfl": []}
    arms: dict[str, Callable[[], Call]] = {"fedopt": lambda: pair.ours(n, f), "byzfl": lambda: pair.theirs(byzfl, n, f)}
    for number in range(repetitions + 1):
        for name, made in arms.items():
            done = found[name]
            if (name == "byzfl" and left_out) or (
                done and (done[0] > 10 * SLOW_S or (done[0] > SLOW_S and number > 2))
            ):
                continue
            call = made()
            if name == "byzfl" and pair.writes:
                call = copying(call)
            took = seconds(call, updates)
            if number or took > SLOW_S:
                done.append(took)
    if pair.writes:
        found["byzfl_in_place"] = [seconds(arms["byzfl"](), updates.clone()) for _ in range(repetitions)]
    return found


def copying(call: Call) -> Call:
    return lambda updates: call(updates.clone())


def peak(n: int, d: int) -> dict[str, float]:
    """Peak memory of nearest neighbour mixing beyond its input and its result, measured in a process of its own."""
    command = [sys.executable, "-m", "bench.rules", "--peak", "--n", str(n), "--d", str(d)]
    done = subprocess.run(command, cwd=ROOT, env=environment(machine.cores()), stdout=subprocess.PIPE, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _peak(n: int, d: int) -> None:
    # one after another, so that the draw itself needs no second copy
    updates = torch.empty(n, d)
    for row in updates:
        row.normal_()
    mix = step("nnm", f=attackers(n))
    mix(torch.randn(n, 100))  # what libraries take once
    before = _most_resident()
    took = seconds(mix, updates)
    beyond = (_most_resident() - before) / 1024
    print(json.dumps({"input_mb": 4 * n * d / MB, "beyond_input_mb": beyond, "seconds": took}))


def _most_resident() -> int:
    """Peak of this program's memory in kB; `ru_maxrss` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    """Measure, print, store."""
    given = _arguments()
    if given.peak:
        _peak(given.n[0], given.d)
        return
    try:
        import byzfl
    except ImportError as error:
        raise SystemExit(f"{error}: pip install --no-deps byzfl==0.0.11, and what it imports") from None
    torch.set_num_threads(machine.cores())
    cells: list[dict[str, Any]] = []
    for n in given.n:
        updates = population(n, given.d)
        for name, pair in PAIRS.items():
            if (given.rule and name not in given.rule) or n not in pair.sizes:
                continue
            with console.status(f"{name}, n = {n}"):
                found = measure(byzfl, pair, updates, given.repetitions)
            cell = {"rule": name, "n": n, "f": attackers(n), "d": given.d, **found}
            cells.append(cell | ({"left_out": pair.why} if not found["byzfl"] else {}))
            console.print("  ".join(_row(cells[-1])), highlight=False)
        del updates
    value = {"threads": machine.cores(), "sitting": time.strftime("%Y-%m-%d %H:%M"), "cells": cells}
    if not given.rule:
        value["nnm_memory"] = {str(n): peak(n, given.d) for n in given.n}
    print(rows(("rule", "n", "f", "fedopt s", "byzfl s", "byzfl / fedopt"), [_row(cell) for cell in cells]))
    for n, held in value.get("nnm_memory", {}).items():
        print(f"nnm at n = {n}: {held['beyond_input_mb']:,.0f} MB beyond its input of {held['input_mb']:,.0f} MB")
    if not given.rule:
        print(f"stored as {store('rules', value).relative_to(ROOT)}")


def _row(cell: dict[str, Any]) -> list[str]:
    ours = statistics.median(cell["fedopt"])
    theirs = statistics.median(cell["byzfl"]) if cell["byzfl"] else None
    return [
        cell["rule"],
        str(cell["n"]),
        str(cell["f"]),
        f"{ours:.3f}",
        cell.get("left_out", "") if theirs is None else f"{theirs:.3f}",
        "" if theirs is None else f"{theirs / ours:.2f}",
    ]


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--n", nargs="*", type=int, default=[20, 100], help="numbers of clients")
    arguments.add_argument("--d", type=int, default=1_000_000, help="parameters")
    arguments.add_argument("--rule", nargs="*", choices=list(PAIRS), help="these alone; nothing is stored then")
    arguments.add_argument("--repetitions", type=int, default=5)
    arguments.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
