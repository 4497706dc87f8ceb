"""What a search of ISP costs beside the rounds that it is spread over.

    python -m bench.search_cost [--epochs 1 5] [--searches 10]

The digits of configs/quickstart.toml over 100 clients, 20 of them per round, with 500 trial samples; ISP as it is by
default, with a search every 20 rounds. Its searches are timed where the server makes them; rounds, in a run of 20
clients each. All runs take turns, round by round, in one process with one thread, whose seconds are counted by its own
clock: it stands still while the system runs something else.

    share = (median seconds of a search / period) / (median seconds of a round)

A round of ISP without a search has one more forward pass over the trial samples; with these, the share is of all that
ISP takes in a period. A search that finds nothing tries every head-count that it may; how long such a one takes is
computed from the seconds per head-count.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from rich.progress import track

from bench import machine
from bench.processes import ROOT
from bench.run import store
from bench.table import rows
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine.loop import Step, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.participation.counts.isp import isp
from fedopt.types import Info, Replies, State

EXECUTORS = ("serial", "stacked")
START, PERIOD, WARMUP = 20, 20, 12
COUNTS = {"fixed": str(START), "isp": f'{{ name = "isp", start = {START}, period = {PERIOD}, warmup = {WARMUP} }}'}
WARM = WARMUP
"""Rounds that do not count: the shapes that recur are traced by then."""


class Run:
    """One experiment, exchange by exchange, with a clock around what its participation learns."""

    def __init__(self, executor: str, epochs: int, count: str) -> None:
        config = configs.load(
            ROOT / "configs" / "quickstart.toml",
            [
                "data.clients=100",
                "data.trial_samples=500",
                f"strategy.epochs={epochs}",
                f"participation.count={count}",
                f"executor.name={executor}",
            ],
        )
        setup = setups.build(config)
        strategy: Any = setup.strategy
        observe = strategy.participation.observe

        def timed(state: State, replies: Replies, **offers: Any) -> tuple[State, Info]:
            started = time.process_time()
            learnt = observe(state, replies, **offers)
            self.learning = time.process_time() - started
            return learnt

        strategy = dataclasses.replace(strategy, participation=strategy.participation._replace(observe=timed))
        memory = ClientMemory(strategy.programs(setup.problem).memory, setup.problem.clients)
        state = strategy.init(setup.problem, keys.fold(setup.key, "init"))
        parts = (setup.problem, strategy, setup.executor, setup.adversary, memory, state, setup.key)
        self.steps: Iterator[Step] = exchanges(*parts)
        self.learning = 0.0
        """Seconds of the last round that the participation took to learn from the answers."""
        self.clients = setup.problem.clients
        self.trial = setup.problem.server_split("trial").y.shape[0]

    def round(self) -> tuple[Step, float]:
        """The next one, and its seconds."""
        started = time.process_time()
        step = next(self.steps)
        return step, time.process_time() - started


def measure(epochs: int, searches: int) -> list[dict[str, Any]]:
    """A cell for each executor."""
    runs = {(e, name): Run(e, epochs, count) for e in EXECUTORS for name, count in COUNTS.items()}
    found: dict[str, dict[str, list[Any]]] = {
        executor: {"rounds": [], "searches": [], "watching": [], "tried": []} for executor in EXECUTORS
    }
    wanted = WARMUP + PERIOD * (searches - 1) + 1
    for number in track(range(wanted), description=f"epochs = {epochs}"):
        for executor, name in sorted(runs, reverse=bool(number % 2)):
            run, seconds = runs[executor, name], found[executor]
            step, took = run.round()
            if name == "fixed":
                assert step.replies.clients.numel() == START
                if number >= WARM:
                    seconds["rounds"].append(took)
            elif "tried" in step.info["search"]:
                seconds["searches"].append(run.learning)
                seconds["tried"].append([tried["clients"] for tried in step.info["search"]["tried"]])
            elif number >= WARM:
                seconds["watching"].append(run.learning)
    some, rule = runs["serial", "isp"], isp(start=START).rule
    about = {"epochs": epochs, "clients": some.clients, "cohort": START, "period": PERIOD, "trial_samples": some.trial}
    about["grid"] = (rule.most or 2 * START) - rule.least + 1
    return [{**about, "executor": executor, **found[executor]} for executor in EXECUTORS]


def figures(cell: dict[str, Any]) -> dict[str, float]:
    """Medians in seconds, and shares of the rounds' time, of a cell as stored."""
    round_s, period = statistics.median(cell["rounds"]), cell["period"]
    search_s, watching_s = statistics.median(cell["searches"]), statistics.median(cell["watching"])
    each = statistics.median(s / len(tried) for s, tried in zip(cell["searches"], cell["tried"], strict=True))
    return {
        "round": round_s,
        "search": search_s,
        "share": search_s / period / round_s,
        "share_with_watching": (search_s + (period - 1) * watching_s) / period / round_s,
        "share_of_the_whole_grid": each * cell["grid"] / period / round_s,
        "tried": statistics.median(len(tried) for tried in cell["tried"]),
    }


def table(cells: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    header = (
        "executor", "local epochs", "round, ms", "search, ms", "head-counts tried", "share", "with the loss each round",
        "whole grid",
    )  # fmt: skip
    body = []
    for cell in cells:
        f = figures(cell)
        body.append([
            cell["executor"], str(cell["epochs"]), f"{1e3 * f['round']:.2f}", f"{1e3 * f['search']:.2f}",
            f"{f['tried']:g}", f"{f['share']:.1%}", f"{f['share_with_watching']:.1%}",
            f"{f['share_of_the_whole_grid']:.1%}",
        ])  # fmt: skip
    return rows(header, body)


def main() -> None:
    """Measure, print, store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--epochs", nargs="*", type=int, default=[1, 5], help="local epochs")
    arguments.add_argument("--searches", type=int, default=10)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    sitting = time.strftime("%Y-%m-%d %H:%M")
    cells = [cell for epochs in given.epochs for cell in measure(epochs, given.searches)]
    print(table(cells))
    path = store("search_cost", {"threads": 1, "cores": machine.cores(), "sitting": sitting, "cells": cells})
    print(f"stored as {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
