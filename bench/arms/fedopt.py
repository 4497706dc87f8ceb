"""The fedopt arm: a config as people write it, with the task's data and network, and the loop of the engine."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import tasks
from bench.arms.protocol import Line, serve
from fedopt import config, keys
from fedopt import setup as setups
from fedopt.data import Federation, Shards, Split
from fedopt.engine.loop import Step, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.models.char_lstm import char_lstm
from fedopt.participation.uniform import uniform
from fedopt.problem import Problem
from fedopt.types import Client, ClientProgram, Exchange, Info, Named, Programs, Replies, Uplink

SETTLING = 80
"""Most exchanges that `auto` is given to make its choice."""


def federation_of(task: tasks.Loaded) -> Federation:
    """The task's data as fedopt holds it: the only place that knows how a federation is put together."""
    shards = Shards(task.x, task.index, task.y[task.index], task.offsets)
    return Federation(
        splits={"train": shards},
        server={"test": Split(task.test_x, task.test_y)} if task.real else {},
        class_names=tuple(map(str, range(task.classes))),
        client_names=(),
        vocabulary=task.classes if task.task.net == "char_lstm" else None,
    )


def network_of(task: tasks.Loaded) -> nn.Module:
    """The task's network with its first weights; the recurrent one as fedopt has it, with its gradient written out."""
    if task.task.net != "char_lstm":
        return task.net()
    module = char_lstm(
        inputs=tuple(task.x.shape[1:]), classes=task.classes, vocabulary=task.classes, hidden=128, layers=1
    )
    module.load_state_dict(task.initial)
    return module


class _State(NamedTuple):
    round: int
    model: Named


@dataclass(frozen=True)
class Null:
    """A strategy without work: each client answers with its own multiple of the model; the server takes the mean."""

    cohort: int

    def programs(self, problem: Problem) -> Programs:
        def finish(client: Client, carry: Any) -> Uplink:
            own = client.key.remainder(1000).to(problem.dtype) * 1e-9
            return Uplink({"delta": client.down["params"] * own}, {}, {}, client.samples.to(problem.dtype) + 1.0)

        return Programs({"null": ClientProgram(lambda client: (), lambda client, carry, batch: carry, finish)}, {})

    def init(self, problem: Problem, key: Tensor) -> _State:
        return _State(0, dict(problem.initial))

    def plan(self, problem: Problem, state: _State, key: Tensor) -> Exchange:
        clients = uniform().choose((), self.cohort, torch.arange(problem.clients), key)
        return Exchange("null", clients, dict(state.model), reduce="mean")

    def absorb(self, problem: Problem, state: _State, replies: Replies, key: Tensor) -> tuple[_State, Info]:
        return _State(state.round + 1, {"params": state.model["params"] + replies.vectors["delta"][0]}), {}

    def model(self, problem: Problem, state: _State) -> Named:
        return state.model


class Run:
    """One experiment, exchange by exchange."""

    def __init__(self, task: tasks.Loaded, executor: dict[str, Any]) -> None:
        self.task = task
        spec = task.task
        local = {"batch_size": spec.batch, **({"steps": spec.steps} if spec.steps else {"epochs": 1})}
        document: dict[str, Any] = {
            "run": {"rounds": 1000, "seed": tasks.SEED},
            "executor": executor,
        }
        if spec.work == "train":
            document |= {"strategy": {"name": "fedavg", **local}, "optimizer": {"name": "sgd", "lr": spec.lr}}
            document |= {"participation": {"name": "uniform", "count": task.cohort}}
        checked = config.load(document)
        self.setup = setups.build(
            checked,
            data=federation_of(task),
            model=network_of(task),
            strategy=Null(task.cohort) if spec.work == "null" else None,
        )
        torch.set_num_threads(checked.executor.threads)
        self.begin()

    def begin(self) -> None:
        """From the first weights; what the executor has learnt stays."""
        setup = self.setup
        memory = ClientMemory(setup.strategy.programs(setup.problem).memory, setup.problem.clients)
        state = setup.strategy.init(setup.problem, keys.fold(setup.key, "init"))
        parts = (setup.problem, setup.strategy, setup.executor, setup.adversary, memory, state, setup.key)
        self.steps: Iterator[Step] = exchanges(*parts)

    def rounds(self, count: int) -> None:
        for step in itertools.islice(self.steps, count):
            self.last = step

    def settle(self) -> None:
        """Until the executor says what it has chosen."""
        for _ in range(SETTLING):
            if self.setup.executor.plan().get("choice"):
                return
            self.rounds(1)

    def accuracy(self, count: int) -> tuple[float | None, int]:
        self.begin()
        self.rounds(count)
        model = self.setup.strategy.model(self.setup.problem, self.last.state)
        assert model is not None
        params, buffers = self.setup.problem.unpack(model)
        infer = self.setup.problem.network.infer
        return self.task.accuracy(lambda x: infer(params, buffers, x)), count

    def facts(self) -> dict[str, Any]:
        executor = self.setup.executor
        plan = executor.plan()
        outside = "ray" in str(plan.get("choice") or executor.name)
        self.rounds(1)
        moved: int | None = getattr(executor, "serialised", None) if outside else 0
        how = "none" if not outside else "not counted" if moved is None else "counted by the executor in one round"
        return {"serialised_bytes": moved, "serialised_how": how, "plan": plan, "executor": executor.name}

    def close(self) -> None:
        getattr(self.setup.executor, "close", lambda: None)()


def main() -> None:
    """Prepare, then answer the harness."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("task")
    arguments.add_argument("--executor", default="stacked")
    arguments.add_argument("--threads", type=int)
    arguments.add_argument("--workers", type=int)
    arguments.add_argument("--inner")
    arguments.add_argument("--cohort", type=int)
    arguments.add_argument("--device")
    given = arguments.parse_args()
    line = Line()
    options = {"threads": given.threads, "workers": given.workers, "inner": given.inner, "device": given.device}
    executor = {"name": given.executor, **{key: value for key, value in options.items() if value is not None}}
    run = Run(tasks.load(given.task, cohort=given.cohort), executor)
    settle = run.settle if given.executor == "auto" else None
    serve(line, run.rounds, accuracy=run.accuracy, facts=run.facts, settle=settle, close=run.close)


if __name__ == "__main__":
    main()
