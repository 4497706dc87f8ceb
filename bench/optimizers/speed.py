"""Seconds of an optimizer's step beside torch.optim.Muon's, in turns: `python -m bench.optimizers.speed`.

The matrices are those of a transformer of width 256 and 4 blocks; gradients are given, so a step is all that is timed.
Both take five Newton-Schulz steps in bfloat16. Figures are stored in bench/cells/optimizer-speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console

from bench.processes import ROOT
from fedopt.optimizers import as_torch, build

STORED = ROOT / "bench" / "cells" / "optimizer-speed.json"
WIDTH, BLOCKS = 256, 4
SHAPES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * BLOCKS
OURS = ("muon", "muadam", "muadam_sania")


def parameters() -> list[torch.nn.Parameter]:
    """Matrices with gradients."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in SHAPES]
    for parameter in found:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return found


def main() -> None:
    """Measure and store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--steps", type=int, default=40)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    steps: dict[str, Callable[[], object]] = {"torch.optim.Muon": torch.optim.Muon(parameters(), lr=0.02).step}
    for name in OURS:
        steps[name] = as_torch(
            parameters(), build(name, {"lr": 0.02, "ns": "quintic", "ns_steps": 5, "ns_dtype": "bfloat16"})
        ).step
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(given.steps + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn > 1:
                taken[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    base = medians["torch.optim.Muon"]
    found = {name: {"seconds": seconds, "ratio": seconds / base} for name, seconds in medians.items()}
    STORED.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in found.items():
        Console().print(f"{name}: {1e3 * row['seconds']:.1f} ms a step, {row['ratio']:.2f} times torch's")


if __name__ == "__main__":
    main()
