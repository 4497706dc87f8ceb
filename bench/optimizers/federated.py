"""Local optimizers in a federation, at equal uploads: `python -m bench.optimizers.federated [--draw]`.

10,000 images of MNIST over 50 clients, classes by a Dirichlet distribution with 0.1, ten clients a round, one pass over
their data each, FedAvg. The learning rate is one of five for each optimizer, chosen by the loss on 500 held-out samples
on a seed of its own, and falls over the rounds as a cosine to a tenth; then three seeds, which also draw the partition.
Figures are stored in bench/cells/optimizer-federated.json. Needs FEDOPT_DATA with mnist10k.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console

from bench.optimizers.page import PAGE
from bench.optimizers.runs import FACTORS, trained
from bench.pages import filled
from bench.processes import ROOT
from bench.table import rows
from fedopt import config as configs
from fedopt import setup as setups
from fedopt.engine import evaluate

STORED = ROOT / "bench" / "cells" / "optimizer-federated.json"
COMMAND = "python -m bench.optimizers.federated"
ROUNDS, CLIENTS, COHORT = 60, 50, 10
TUNING, SEEDS = 0, (1, 2, 3)
ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "sgd": (0.1, {}),
    "sgd, momentum": (0.03, {"name": "sgd", "momentum": 0.9}),
    "adam": (1e-3, {}),
    "adam, averaged state": (1e-3, {"name": "adam"}),
    "muon": (0.02, {}),
    "muadam": (0.02, {}),
    "muadam, averaged state": (0.02, {"name": "muadam"}),
    "alias": (1.0, {"option": "II"}),
    "also": (1e-3, {"groups": 10, "of": {"name": "adam"}}),
}
"""The base of the learning rate, and options."""


def document(arm: str, factor: float, seed: int) -> dict[str, Any]:
    """The experiment as a config."""
    base, options = ARMS[arm]
    table: dict[str, Any] = {"name": arm, **json.loads(json.dumps(options))}

    def falling(peak: float) -> dict[str, Any]:
        return {"schedule": "cosine", "start": peak, "end": 0.1 * peak, "rounds": ROUNDS}

    table.get("of", table)["lr"] = falling(base * factor)
    if table["name"].startswith("mu"):
        table["vectors"] = {"name": "adamw", "lr": falling(1e-3 * factor)}
    return {
        "run": {"rounds": ROUNDS, "seed": seed},
        "data": {
            "name": "idx",
            "images": "mnist10k/t10k-images-idx3-ubyte.gz",
            "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
            "clients": CLIENTS,
            "partition": {"name": "dirichlet", "alpha": 0.1},
            "test_share": 0.2,
            "trial_samples": 500,
        },
        "model": {"name": "lenet5"},
        "strategy": {
            "name": "fedavg",
            "batch_size": 32,
            "epochs": 1,
            "optimizer_state": "averaged" if "averaged" in arm else "reset",
        },
        "participation": {"name": "uniform", "count": COHORT},
        "optimizer": table,
        "executor": {"name": "stacked"},
    }


def figures(arm: str, factor: float, seed: int, split: str) -> dict[str, float]:
    """Loss and accuracy at the end, and bytes that clients sent per parameter of the model, a round and client."""
    torch.set_num_threads(1)
    text = document(arm, factor, seed)
    data = setups.build(configs.load(text)).problem.data
    end = trained(text, data)
    found = evaluate.on_server(end.problem, end.model, split)
    return {"loss": found["loss"], "accuracy": found["accuracy"], "seconds": end.seconds}


def search(arm: str) -> dict[str, Any]:
    """Choose the factor, then run the seeds."""
    tried = {factor: figures(arm, factor, TUNING, "trial")["loss"] for factor in FACTORS}
    factor = min(tried, key=lambda factor: tried[factor] if tried[factor] == tried[factor] else float("inf"))
    return {"factor": factor, "runs": [figures(arm, factor, seed, "test") for seed in SEEDS]}


def table(stored: dict[str, Any]) -> str:
    """The table."""
    body = []
    for arm in ARMS:
        if arm not in stored:
            continue
        runs = stored[arm]["runs"]
        accuracy, loss = ([run[name] for run in runs] for name in ("accuracy", "loss"))
        body.append(
            [
                arm,
                f"{100 * statistics.mean(accuracy):.2f} ± {100 * statistics.stdev(accuracy):.2f}",
                f"{statistics.mean(loss):.3f}",
                f"{ARMS[arm][0] * stored[arm]['factor']:.2g}",
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    missing = [arm for arm in ARMS if arm not in stored]
    text = rows(("clients' optimizer", "accuracy, %", "loss", "peak", "seconds"), body) if body else ""
    return text + (f"\nNot measured: {', '.join(missing)}.\n" if missing else "")


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
        for arm, found in zip(wanted, pool.map(search, wanted), strict=True):
            stored[arm] = found
            STORED.write_text(json.dumps(stored, indent=1) + "\n")
            accuracy = statistics.mean(run["accuracy"] for run in found["runs"])
            Console().print(f"{arm}: {accuracy:.4f}")
    PAGE.write_text(filled(PAGE.read_text(), COMMAND, table(stored)))


if __name__ == "__main__":
    main()
