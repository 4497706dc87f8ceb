"""Memory of all processes over a long Ray run, and the slope of the line through it.

python -m bench.ray_memory [--rounds 1000] [--task mlp-100] [--inner stacked] [--workers 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import track

from bench import machine, tasks
from bench.processes import Process, environment
from bench.run import ANSWER_S, STARTUP_S, python, store


def slope(samples: Sequence[tuple[int, int]]) -> float:
    """MB per 100 rounds of the least-squares line through (rounds, bytes)."""
    rounds, held = np.array(samples, dtype=np.float64).T
    return float(np.polyfit(rounds, held / 2**20, 1)[0] * 100)


def main() -> None:
    """Run, sample, store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=1000)
    arguments.add_argument("--task", default="mlp-100", choices=list(tasks.TASKS))
    arguments.add_argument("--inner", default="stacked", choices=["serial", "stacked"])
    arguments.add_argument("--workers", type=int, default=machine.cores())
    arguments.add_argument("--executor", default="ray", help="another executor, to see what is not Ray's")
    given = arguments.parse_args()
    tasks.make(given.task)
    options = ["--inner", given.inner, "--workers", str(given.workers)] if given.executor == "ray" else []
    command = [str(python("fedopt")), "-m", "bench.arms.fedopt", given.task, "--executor", given.executor, *options]
    started = time.monotonic()
    process = Process(command, environment(1), STARTUP_S)
    samples: list[tuple[int, int]] = []
    step = max(given.rounds // 200, 1)
    try:
        for done in track(range(step, given.rounds + 1, step), description="rounds over Ray"):
            process.ask(ANSWER_S, do="rounds", count=step)
            samples.append((done, process.held))
    finally:
        process.end()
    after = [sample for sample in samples if sample[0] > given.rounds // 10]
    value: dict[str, Any] = {
        "task": given.task,
        "executor": given.executor,
        "inner": given.inner,
        "workers": given.workers,
        "rounds": samples[-1][0],
        "seconds": time.monotonic() - started,
        "first_mb": after[0][1] / 2**20,
        "last_mb": after[-1][1] / 2**20,
        "mb_per_100_rounds": slope(after),
        "samples": samples,
    }
    path = store("ray_memory" if given.executor == "ray" else f"{given.executor}_memory", value)
    print(f"{path.name}: {value['mb_per_100_rounds']:+.2f} MB per 100 rounds")


if __name__ == "__main__":
    main()
