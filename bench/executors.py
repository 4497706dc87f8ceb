"""Client updates per second of the executors on the digits MLP, in one sitting.

    python bench/executors.py --cohort 100 --rounds 5

The executors take turns, so that a change of the machine's speed meets both; the median over the turns is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from fedopt import config, keys
from fedopt import setup as setups
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory


def main() -> None:
    """Parse the arguments, measure, print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--cohort", type=int, default=100)
    arguments.add_argument("--clients", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    steps = {}
    for name in ("serial", "stacked"):
        setup = setups.build(
            config.load(
                {
                    "data": {"name": "digits", "clients": given.clients, "partition": "iid", "test_share": 0.0},
                    "strategy": {"name": "fedavg", "batch_size": 10, "epochs": 1},
                    "participation": {"name": "uniform", "count": given.cohort},
                    "optimizer": {"name": "sgd", "lr": 0.1},
                    "executor": {"name": name},
                }
            )
        )
        problem, strategy = setup.problem, setup.strategy
        memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
        state = strategy.init(problem, keys.fold(setup.key, "init"))
        steps[name] = exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, setup.key)
        next(steps[name])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.rounds):
        for name, run in steps.items():
            started = time.perf_counter()
            next(run)
            seconds[name].append(time.perf_counter() - started)
    rates = {name: given.cohort / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:8s} {rate:10.0f} client updates per second")
    print(f"stacked / serial = {rates['stacked'] / rates['serial']:.1f}  ({torch.get_num_threads()} thread)")


if __name__ == "__main__":
    main()
