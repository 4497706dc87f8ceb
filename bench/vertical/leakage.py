"""What messages of vertical training give away, with and without a defence.

    python -m bench.vertical.leakage

EGVFL with the logistic loss on a9a, columns over ten parties at random: a party's dozen can be searched for, and few of
them are of one category, whose unions are binary too.
Every message of so many iterations is recorded, and read by somebody who follows the protocol:

    sign          a party, from the first multipliers, and from the sum of all           AUC, accuracy
    completion    a party, from its own trained outputs and 200 known labels             accuracy
    auxiliary     the owner, from a party's messages and 500 known people                correlation
    binary        the owner, from a party's messages alone                               share of columns found

Defences: sums that the owner alone sees as sums, and noise on all messages. Figures are stored in
bench/cells/vertical-leakage.json and stand in docs/vfl.md. Needs FEDOPT_DATA with libsvm/a9a, and fedopt[privacy].
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from bench.vertical import page
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine import evaluate
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.setup import Setup
from fedopt.types import Strategy
from fedopt.vfl.inference.auxiliary import auxiliary
from fedopt.vfl.inference.binary import binary
from fedopt.vfl.inference.completion import completion
from fedopt.vfl.inference.sign import sign
from fedopt.vfl.inference.success import Success, accuracy, auc, correlation
from fedopt.vfl.noisy import Noisy

PARTIES, ITERATIONS = 10, 100
LABELS, PEOPLE = 200, 500
"""Known to an attacker."""
GUESSES = 10
"""Binary columns that are guessed for each one that the party has: unions of exclusive ones are in the span too."""
CLIP, DOWN = 1.0, 0.01
"""About the largest of what parties and the owner say: outputs, and multipliers in units of 1/√m."""
NOISE = (0.1, 1.0, 10.0)
DELTA = 1e-6


def made() -> Setup:
    """The experiment."""
    return setups.build(
        configs.load(
            {
                "run": {"rounds": ITERATIONS, "dtype": "float64"},
                "data": {
                    "name": "libsvm",
                    "file": "libsvm/a9a",
                    "features": 123,
                    "clients": PARTIES,
                    "vertical": {"name": "even", "shuffle": True},
                },
                "model": {"name": "logistic", "bias": False},
                # a step that noise on a power iteration does not reach
                "strategy": {"name": "egvfl", "loss": "logistic", "l2": 1e-2, "step": 0.1},
                "executor": {"name": "stacked"},
            }
        )
    )


class Messages(NamedTuple):
    """What was told `[K, m, 1]` and what each party sent `[n, m, K]`, its weights at the end, and the accuracy."""

    told: Tensor
    sent: Tensor
    weights: Tensor
    accuracy: float


def recorded(setup: Setup, strategy: Strategy) -> Messages:
    """A run with all that was said in it."""
    problem, told, sent = setup.problem, [], []
    programs = strategy.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    key = keys.root(1)

    class Open:
        """The strategy, with every party's own vectors."""

        def __getattr__(self, name: str) -> Any:
            return getattr(strategy, name)

        def plan(self, problem: Any, state: Any, key: Tensor) -> Any:
            return strategy.plan(problem, state, key)._replace(reduce="rows")

    state = strategy.init(problem, keys.fold(key, "init"))
    for step in exchanges(problem, Open(), setup.executor, setup.adversary, memory, state, key):  # type: ignore[arg-type]
        exchange, rows = step.replies.exchange, step.replies.vectors["outputs"]
        if not exchange.program.startswith("tell "):
            told.append(exchange.down["multipliers"][:, None])
            sent.append(rows)
        if step.state.round == ITERATIONS:
            break
    found = evaluate.on_parties(problem, strategy, programs, setup.executor, memory, step.state, key)
    weights = memory.of(torch.arange(problem.clients))["weights"]
    known = torch.stack([value for value in told if bool(value.any())])
    return Messages(known, torch.stack(sent, dim=2), weights, float(found["accuracy"]))


def attacked(setup: Setup, messages: Messages, *, sums: bool) -> dict[str, Success]:
    """The success of every attack; sums: the owner sees sums over the parties alone."""
    problem = setup.problem
    labels = problem.data.server["train"].y.long()
    x = problem.data.splits["train"].x.unflatten(0, (PARTIES, -1))[0]
    x = x[:, x.any(dim=0)]  # without the padding
    truth = (x > 0).double()
    key = keys.root(2)
    some, people = (keys.sample(keys.fold(key, what), len(labels), n) for what, n in (("y", LABELS), ("x", PEOPLE)))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[some] = False
    first, every = sign(messages.told[:1]), sign(messages.told)
    outputs = (x @ messages.weights[0, : x.shape[1]])[:, None]
    completed = completion(outputs, some, labels[some])
    sent = messages.sent.sum(dim=0) if sums else messages.sent[0]
    others = torch.ones(len(labels), dtype=torch.bool)
    others[people] = False
    features = auxiliary(sent, people, truth[people])
    rank = min(x.shape[1], int(torch.linalg.matrix_rank(sent)))
    found = binary(sent, rank, GUESSES * x.shape[1]).columns
    same = [bool((found == column[:, None]).all(dim=0).any()) for column in truth.T]
    return {
        "sign, first message": auc(first.score, labels),
        "sign, all messages": auc(every.score, labels),
        "completion": accuracy(completed.label[rest], labels[rest]),
        "auxiliary": correlation(features[others], truth[others]),
        "binary": Success(sum(same) / len(same), 0.0),
    }


def main() -> None:
    """Measure, and write the page."""
    console, setup = Console(), made()
    plain = recorded(setup, setup.strategy)
    arms: dict[str, tuple[Messages, bool, float | None]] = {
        "no defence": (plain, False, None),
        "the owner sees sums": (plain, True, None),
    }
    for z in NOISE:
        noisy = Noisy(setup.strategy, CLIP, z, DOWN)
        spent = noisy.spent(2 * ITERATIONS, DELTA)
        arms[f"noise, z = {z:g}"] = (recorded(setup, noisy), False, spent)
    stored: dict[str, Any] = {}
    for arm, (messages, sums, spent) in arms.items():
        found = attacked(setup, messages, sums=sums)
        stored[arm] = {"accuracy": messages.accuracy, "epsilon": spent, **{n: s._asdict() for n, s in found.items()}}
        console.print(arm, stored[arm])
    page.LEAKAGE.write_text(json.dumps(stored, indent=1) + "\n")
    page.write()


if __name__ == "__main__":
    main()
