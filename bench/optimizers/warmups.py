"""The adaptive warm-up beside lengths that are given: `python -m bench.optimizers.warmups [--draw]`.

A transformer over Shakespeare, as in the table of optimizers but for 600 steps. The peak of each optimizer is one
out of five, chosen on a seed of its own with a warm-up of 5 % of the steps; the loss at which that run ended is the
target that the adaptive one is given. Then a warm-up of five lengths, and the adaptive one, three seeds each; all
end in a cosine to 1e-4 of the peak. Figures are stored in bench/cells/optimizer-warmups.json. Needs FEDOPT_DATA
with shakespeare.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console

from bench.optimizers import runs
from bench.optimizers.page import PAGE
from bench.optimizers.runs import FACTORS, trained
from bench.pages import filled
from bench.processes import ROOT
from bench.table import rows
from fedopt.engine import evaluate

STORED = ROOT / "bench" / "cells" / "optimizer-warmups.json"
COMMAND = "python -m bench.optimizers.warmups"
TASK = "Shakespeare, transformer"
ROUNDS, STEPS = 120, 5
LENGTHS = (0.0, 0.025, 0.05, 0.1, 0.2)
"""Shares of the steps."""
TUNING, SEEDS = 0, (1, 2, 3)
FINAL = 1e-4
ARMS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "muon": (0.02, 100.0, {"norm": "spectral"}),
    "lion": (1e-3, 100.0, {"norm": "max_entry"}),
    "normalised_sgd": (0.1, 5.0, {"norm": "frobenius"}),
}
"""The base of the peak, div of the adaptive warm-up, and its norm."""


def schedule(peak: float, length: float) -> dict[str, Any]:
    """A line from 0 to the peak over a share of the rounds, then a cosine."""
    first = round(length * ROUNDS)
    rising = [peak * (k + 1) / (first + 1) for k in range(first)]
    falling = [
        peak * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * k / (ROUNDS - first))))
        for k in range(ROUNDS - first)
    ]
    return {"schedule": "steps", "values": rising + falling, "at": list(range(1, ROUNDS))}


def document(arm: str, factor: float, seed: int, length: float | None, target: float = 0.0) -> dict[str, Any]:
    """The experiment as a config; no length: the adaptive one."""
    base, div, norm = ARMS[arm]
    table: dict[str, Any] = {"name": arm}
    table["lr"] = base * factor if length is None else schedule(base * factor, length)
    if arm == "muon":
        table["apart"] = ["tokens*", "positions", "head*"]
        # Adam's part has the same schedule throughout, so that the arms differ in Muon's alone
        table["vectors"] = {"name": "adamw", "lr": schedule(runs.ADAM, 0.05)}
    if length is None:
        table = {"name": "warmup", "of": table, "target": target, "steps": ROUNDS * STEPS, "div": div, **norm}
        table["final"] = FINAL
    text = runs.document(TASK, table, seed)
    text["run"]["rounds"] = ROUNDS
    text["strategy"]["steps"] = STEPS
    return text


def loss(arm: str, factor: float, seed: int, length: float | None, target: float = 0.0) -> tuple[float, float]:
    """On the held-out samples (500 when tuning, the test data otherwise), and the last of training."""
    torch.set_num_threads(1)
    end = trained(document(arm, factor, seed, length, target), runs.federation(TASK))
    found = evaluate.on_server(end.problem, end.model, "trial" if seed == TUNING else "test")
    return found["loss"], end.loss


def measure(arm: str) -> dict[str, Any]:
    """Tune, then all lengths and seeds."""
    tried = {factor: loss(arm, factor, TUNING, 0.05) for factor in FACTORS}
    factor = min(tried, key=lambda f: tried[f][0] if math.isfinite(tried[f][0]) else math.inf)
    target = tried[factor][1]
    lengths = {f"{100 * length:g} %": [loss(arm, factor, seed, length)[0] for seed in SEEDS] for length in LENGTHS}
    lengths["adaptive"] = [loss(arm, factor, seed, None, target)[0] for seed in SEEDS]
    return {"factor": factor, "target": target, "losses": lengths}


def table(stored: dict[str, Any]) -> str:
    """Mean test loss, and how far the adaptive one is from the best length."""
    body = []
    for arm, found in stored.items():
        means = {name: statistics.mean(values) for name, values in found["losses"].items()}
        best = min((name for name in means if name != "adaptive"), key=lambda name: means[name])
        gap = means["adaptive"] - means[best]
        error = statistics.stdev(found["losses"][best]) / math.sqrt(len(SEEDS))
        cells = [f"**{means[name]:.3f}**" if name == best else f"{means[name]:.3f}" for name in means]
        peak = f"{ARMS[arm][0] * found['factor']:.2g}"
        body.append([arm, peak, *cells, f"{gap:+.3f}", f"{error:.3f}"])
    head = ("", "peak", *(f"{100 * x:g} %" for x in LENGTHS), "adaptive", "over the best", "standard error of the best")
    return rows(head, body) if body else "Not measured."


def main() -> None:
    """Measure what is not measured, and draw."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--arm", nargs="*", default=list(ARMS), choices=list(ARMS))
    arguments.add_argument("--jobs", type=int, default=2)
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    wanted = [] if given.draw else [arm for arm in given.arm if arm not in stored]
    with ProcessPoolExecutor(given.jobs) as pool:
        for arm, found in zip(wanted, pool.map(measure, wanted), strict=True):
            stored[arm] = found
            STORED.write_text(json.dumps(stored, indent=1) + "\n")
            Console().print(f"{arm}: {found}")
    PAGE.write_text(filled(PAGE.read_text(), COMMAND, table(stored)))


if __name__ == "__main__":
    main()
