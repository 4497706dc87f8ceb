"""Where a round of fedopt goes: phases, operations, and the distance to the machine's matrix products.

    python -m bench.profile [mlp-100 cnn] [--executor stacked] [--threads 1] [--rounds 20]

Run it as a module: called by its path it would hide the standard library's `profile`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import counted, machine, tasks
from bench.arms.fedopt import Run
from bench.run import store

PHASES = (
    ("fedopt.engine.stacked", "assemble", "draw"),
    ("fedopt.engine.stacked", "walk", "draw"),
    ("fedopt.engine.serial", "assemble", "draw"),
    ("fedopt.engine.serial", "walk", "draw"),
    ("fedopt.engine.stacked", "Stacked._run", "start, steps, finish"),
    ("fedopt.engine.serial", "run_client", "start, steps, finish"),
    ("fedopt.engine.stacked", "gather", "sum and screen"),
    ("fedopt.engine.serial", "gather", "sum and screen"),
    ("fedopt.engine.stacked", "merge", "sum and screen"),
    ("fedopt.engine.serial", "merge", "sum and screen"),
)
"""Functions of the executors and the phase that their own time, without that of the others here, is counted to."""


WARM = 12
"""Rounds before the measurement: the shapes that recur are traced by then."""


class Clock:
    """Seconds by phase; time inside a nested phase counts to that one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0

    def around(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._inside = self._inside, 0.0
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                self.seconds[phase] = self.seconds.get(phase, 0.0) + took - self._inside
                self._inside = outer + took

        return timed


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """The functions of PHASES timed."""
    kept = []
    for module_name, path, phase in PHASES:
        *owners, name = path.split(".")
        holder = functools.reduce(getattr, owners, importlib.import_module(module_name))
        function = getattr(holder, name)
        kept.append((holder, name, function))
        setattr(holder, name, clock.around(phase, function))
    try:
        yield
    finally:
        for holder, name, function in kept:
            setattr(holder, name, function)


def measure(name: str, executor: str, threads: int, rounds: int) -> dict[str, Any]:
    """The profile of one task as stored."""
    tasks.make(name)
    task = tasks.load(name)
    run = Run(task, {"name": executor, "threads": threads})
    run.rounds(WARM)
    whole = _seconds(run, rounds)
    clock = Clock()
    phases = {"plan": 0.0, "map": 0.0, "absorb": 0.0}
    with clocked(clock):
        for _ in range(rounds):
            run.rounds(1)
            for phase, seconds in run.last.seconds.items():
                phases[phase] += seconds / rounds
    inner = {phase: seconds / rounds for phase, seconds in clock.seconds.items()}
    rest = phases["map"] - sum(inner.values())
    limits = machine.limits()
    gemm = limits["gemm_gflops_1" if threads == 1 else "gemm_gflops_all"]
    gflop = counted.round_flops(task) / 1e9
    return {
        "task": name,
        "executor": executor,
        "threads": threads,
        "rounds": rounds,
        "seconds": whole,
        "phases": {"plan": phases["plan"], **inner, "rest of map": max(rest, 0.0), "absorb": phases["absorb"]},
        "gflop": gflop,
        "gflops": gflop / whole,
        "gemm_gflops": gemm,
        "floor_ms": gflop / gemm * 1e3,
        "operations": _operations(run, min(rounds, 5)),
    }


def _seconds(run: Run, rounds: int) -> float:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run.rounds(rounds)
        seconds.append((time.perf_counter() - started) / rounds)
    return sorted(seconds)[1]


def _operations(run: Run, rounds: int, most: int = 12) -> list[dict[str, Any]]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run.rounds(rounds)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "name": event.key,
            "ms": event.self_cpu_time_total / rounds / 1e3,
            "share": event.self_cpu_time_total / total,
            "calls": event.count / rounds,
        }
        for event in events[:most]
    ]


def main() -> None:
    """Measure, store, and say where."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("task", nargs="*", default=["mlp-100", "cnn"])
    arguments.add_argument("--executor", choices=["serial", "stacked"], default="stacked")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.task:
        rounds = given.rounds or (20 if tasks.TASKS[name].net == "mlp" else 2)
        value = measure(name, given.executor, given.threads, rounds)
        path = store(f"profile.{name}.{given.executor}.{given.threads}", value)
        print(f"{path.name}: {value['seconds'] * 1e3:.2f} ms per round, {value['gflops']:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
