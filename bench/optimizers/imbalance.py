"""Rare classes: ALSO beside Adam and Adam with static weights: `python -m bench.optimizers.imbalance [--draw]`.

Of digits the odd classes, of heartbeats all but the normal ones are thinned out until the largest class is 30 times
as large as each; the test data are as they were. Options are chosen by macro-F1 on 500 samples that are held out for
it, on a seed of its own; then five seeds, which also draw what is left of the rare classes. Beats of a patient are in
both parts of the data. Figures are stored in bench/cells/optimizer-imbalance.json.
Needs FEDOPT_DATA with mitdb and mnist10k.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from typing import Any

import torch
from rich.console import Console

from bench.optimizers.page import PAGE
from bench.optimizers.runs import trained
from bench.pages import filled
from bench.processes import ROOT
from bench.table import rows
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.data import Federation
from fedopt.engine import evaluate
from fedopt.optimizers.also import inverse_frequency

STORED = ROOT / "bench" / "cells" / "optimizer-imbalance.json"
COMMAND = "python -m bench.optimizers.imbalance"
RATIO = 30
TUNING, SEEDS = 0, (1, 2, 3, 4, 5)
TASKS: dict[str, dict[str, Any]] = {
    "digits of MNIST": {
        "data": {
            "name": "idx",
            "images": "mnist10k/t10k-images-idx3-ubyte.gz",
            "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
            "test_share": 0.3,
        },
        "model": {"name": "mlp", "hidden": [64]},
        "rare": [1, 3, 5, 7, 9],
        "rounds": 20,
        "steps": 15,
    },
    "ECG": {
        "data": {"name": "ecg", "leads": 0, "decimate": 2, "test_share": 0.3},
        "model": {"name": "cnn1d"},
        "rare": None,
        "rounds": 20,
        "steps": 30,
    },
}
LR = (1e-3, 3e-3, 1e-2)
PI = tuple(itertools.product((1e-3, 1e-2, 1e-1), (1e-2, 1e-1)))
"""η and τ."""


def optimizers(arm: str, prior: tuple[float, ...]) -> list[dict[str, Any]]:
    """What an arm may choose from; the cosine is put in by `document`."""
    adam = [{"name": "adam", "lr": lr} for lr in LR]
    groups = {"name": "also", "groups": len(prior)}
    if arm == "adam":
        return adam
    if arm == "adam, static weights":
        return [{**groups, "of": of, "pi_lr": 0.0, "mode": "descent_ascent", "prior": list(prior)} for of in adam]
    weights = {"prior": list(prior)} if arm == "also, prior of inverse frequencies" else {}
    return [
        {**groups, **weights, "of": of, "pi_lr": eta, "pi_decay": tau} for of, (eta, tau) in itertools.product(adam, PI)
    ]


ARMS = ("adam", "adam, static weights", "also", "also, prior of inverse frequencies")


def document(task: str, optimizer: dict[str, Any], seed: int) -> dict[str, Any]:
    """The experiment as a config."""
    of = TASKS[task]
    table = json.loads(json.dumps(optimizer))
    place = table.get("of", table)
    place["lr"] = {"schedule": "cosine", "start": place["lr"], "end": 0.0, "rounds": of["rounds"]}
    return {
        "run": {"rounds": of["rounds"], "seed": seed},
        "data": {**of["data"], "clients": 1, "trial_samples": 500},
        "model": of["model"],
        "strategy": {"name": "centralised", "batch_size": 64, "steps": of["steps"]},
        "optimizer": table,
    }


def thinned(task: str, whole: Federation, seed: int) -> tuple[Federation, list[int]]:
    """Training data with rare classes, and which these are."""
    shards = whole.splits["train"]
    counts = torch.bincount(shards.y, minlength=whole.classes)
    rare = TASKS[task]["rare"] or [c for c in range(whole.classes) if c != int(counts.argmax())]
    left = max(1, int(counts.max()) // RATIO)
    order = keys.uniform(keys.fold(keys.root(seed), "thinned"), shards.y.shape[0]).argsort()
    kept = torch.ones(shards.y.shape[0], dtype=torch.bool)
    for c in rare:
        kept[order[shards.y[order] == c][left:]] = False
    train = shards._replace(index=shards.index[kept], y=shards.y[kept], offsets=torch.tensor([0, int(kept.sum())]))
    return whole._replace(splits={**whole.splits, "train": train}), rare


def figures(task: str, whole: Federation, options: dict[str, Any], seed: int, split: str) -> dict[str, float]:
    """Macro-F1, mean recall of the rare classes, accuracy."""
    data, rare = thinned(task, whole, seed)
    end = trained(document(task, options, seed), data)
    found = evaluate.on_server(end.problem, end.model, split)
    recalls = list(found["recall"].values()) if isinstance(found["recall"], dict) else found["recall"]
    held = [recalls[c] for c in rare if recalls[c] is not None]
    return {"macro_f1": found["macro_f1"], "recall": statistics.mean(held), "accuracy": found["accuracy"]}


def measure(task: str, stored: dict[str, Any], console: Console) -> None:
    """All arms of a task, that are not there."""
    whole = setups.build(configs.load(document(task, {"name": "adam", "lr": 1e-3}, 1))).problem.data
    for arm in ARMS:
        if arm in stored.setdefault(task, {}):
            continue
        data, _ = thinned(task, whole, TUNING)
        prior = inverse_frequency(torch.bincount(data.splits["train"].y, minlength=whole.classes).tolist())
        tried = [
            (figures(task, whole, options, TUNING, "trial")["macro_f1"], options) for options in optimizers(arm, prior)
        ]
        _, chosen = max(tried, key=lambda pair: pair[0])
        runs = [figures(task, whole, chosen, seed, "test") for seed in SEEDS]
        stored[task][arm] = {"options": chosen, "runs": runs}
        STORED.write_text(json.dumps(stored, indent=1) + "\n")
        console.print(f"{task}, {arm}: macro-F1 {statistics.mean(run['macro_f1'] for run in runs):.4f}")


def text(stored: dict[str, Any]) -> str:
    """The tables."""
    parts = []
    for task, arms in stored.items():
        body = []
        for arm, found in arms.items():
            cells = []
            for figure in ("recall", "macro_f1", "accuracy"):
                values = [100 * run[figure] for run in found["runs"]]
                cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
            options = found["options"]
            chosen = [f"lr {options.get('of', options)['lr']:g}"]
            if "also" in arm:
                chosen += [f"η {options['pi_lr']:g}", f"τ {options['pi_decay']:g}"]
            body.append([arm, *cells, ", ".join(chosen)])
        head = ("", "recall of the rare classes, %", "macro-F1, %", "accuracy, %", "chosen")
        parts.append(f"**{task}**\n\n{rows(head, body)}")
    return "\n".join(parts) or "Not measured."


def main() -> None:
    """Measure what is not measured, and draw."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    for task in [] if given.draw else given.task:
        measure(task, stored, Console())
    PAGE.write_text(filled(PAGE.read_text(), COMMAND, text(stored)))


if __name__ == "__main__":
    main()
