"""Networks, which are not convex, with gradients of mini-batches and inexact proximal steps.

    python -m bench.similarity.nets [--net mlp resnet8] [--seeds 3] [--draw]

2,000 digits with 20 clients, 400 with the server; digits 8 and 9 are the group g. Figures are stored in
bench/cells/similarity-nets.json and stand in docs/similarity.md. Needs FEDOPT_DATA with mnist10k.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from rich.console import Console

from bench.processes import ROOT
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine import evaluate
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory

STORED = ROOT / "bench" / "cells" / "similarity-nets.json"
ROUNDS = {"mlp": 400, "resnet8": 200}
"""With either group, all together."""
LOOK = 10
NETS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [64]},
    "resnet8": {"name": "resnet8", "width": 8},
}
SIMILAR = {"delta_f": 0.3, "delta_g": 1.06}
"""Measured at the first point of the MLP by whole gradients; taken for all."""
METHODS: dict[str, dict[str, Any]] = {
    "aeg": {"name": "aeg", "delta": sum(SIMILAR.values())},
    "sc-aeg, s = 1/4": {"name": "sc_aeg", "factor": 0.25, **SIMILAR},
    "acc vrcs": {"name": "acc_vrcs", "probability": 0.5, **SIMILAR},
    "c-aeg": {"name": "c_aeg", "inner_steps": 3, **SIMILAR},
}


def run(net: str, method: str, seed: int) -> dict[str, Any]:
    """Accuracy on held-out digits against the rounds with each group."""
    torch.set_num_threads(1)
    document = {
        "run": {"rounds": 10**6, "seed": seed},
        "data": {
            "name": "idx",
            "images": "mnist10k/t10k-images-idx3-ubyte.gz",
            "labels": "mnist10k/t10k-labels-idx1-ubyte.gz",
            "clients": 20,
            "test_share": 0.76,
            "trial_samples": 400,
        },
        "model": NETS[net],
        "strategy": {
            **METHODS[method],
            "mu": 0.1,
            "rare_classes": [8, 9],
            "batch_size": 50,
            "steps": 1,
            "prox": {"solver": "optimizer", "steps": 10, "batch": 32},
            "server": {"name": "sgd", "lr": 0.1},
        },
        "executor": {"name": "stacked"},
    }
    setup = setups.build(configs.load(document))
    problem, strategy, key = setup.problem, setup.strategy, keys.root(seed)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    points, started = [], time.perf_counter()
    for step in exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, key):
        if step.state.round % LOOK == 0:
            model = strategy.model(problem, step.state)
            assert model is not None
            found = evaluate.on_server(setup.evaluated, model)
            counted = step.state.counted
            points.append([counted.rounds_f, counted.rounds_g, float(found["accuracy"]), float(found["loss"])])
        if step.state.round >= ROUNDS[net]:
            break
    return {"points": points, "seconds": time.perf_counter() - started}


def main() -> None:
    """Measure what is not stored."""
    from bench.similarity import page

    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--net", nargs="*", default=list(NETS), choices=list(NETS))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--draw", action="store_true")
    given = arguments.parse_args()
    stored: dict[str, Any] = json.loads(STORED.read_text()) if STORED.exists() else {}
    for net in () if given.draw else given.net:
        for seed in range(1, given.seeds + 1):
            for method in METHODS:
                word = f"{net}, {method}, {seed}"
                if word in stored:
                    continue
                stored[word] = run(net, method, seed)
                draft = STORED.with_suffix(".draft")
                draft.write_text(json.dumps(stored) + "\n")
                draft.replace(STORED)
                Console().print(f"{word}: {stored[word]['points'][-1]}, {stored[word]['seconds']:.0f} s")
    page.write()


if __name__ == "__main__":
    main()
