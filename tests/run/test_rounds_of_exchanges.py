"""Strategies with several exchanges per round, and a memory that fails to be stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

from fedopt import Experiment
from fedopt.config import load
from fedopt.engine.memory import ClientMemory
from fedopt.execution import execute
from fedopt.problem import Problem
from fedopt.setup import Setup, build
from fedopt.strategies.fedavg import fedavg
from fedopt.types import Exchange, Info, Named, Programs, Replies

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]


class Twice(NamedTuple):
    """State of a round of two exchanges."""

    round: int
    half: int
    inner: Any


@dataclass(frozen=True)
class TwoExchanges:
    """FedAvg that hears its clients twice before a round is over."""

    inner: fedavg

    def programs(self, problem: Problem) -> Programs:
        return self.inner.programs(problem)

    def init(self, problem: Problem, key: Tensor) -> Twice:
        return Twice(0, 0, self.inner.init(problem, key))

    def plan(self, problem: Problem, state: Twice, key: Tensor) -> Exchange:
        return self.inner.plan(problem, state.inner, key)

    def absorb(self, problem: Problem, state: Twice, replies: Replies, key: Tensor) -> tuple[Twice, Info]:
        inner, info = self.inner.absorb(problem, state.inner, replies, key)
        return Twice(state.round + state.half, 1 - state.half, inner), info

    def model(self, problem: Problem, state: Twice) -> Named:
        return self.inner.model(problem, state.inner)


def test_a_round_is_evaluated_once(small: Small, tmp_path: Path) -> None:
    document = small({"run.rounds": 5, "run.evaluate_every": 2, "run.evaluate_clients_every": 3})
    setup = build(load(document))
    inner: Any = setup.strategy
    run = document.pop("run")
    result = Experiment(**{**document, "strategy": TwoExchanges(inner)}, run_options=run).run(tmp_path / "run")
    assert [line["round"] for line in result.history] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert [line["exchange"] for line in result.history if "accuracy" in line] == [3, 7, 9]
    assert [line["exchange"] for line in result.history if "client_eval" in line] == [5, 9]


def test_the_last_rounds_are_all_evaluated_if_asked(small: Small, tmp_path: Path) -> None:
    for last, wanted in ((3, [4, 7, 8, 9]), (2, [4, 8, 9]), (20, list(range(1, 10)))):
        document = small({"run.rounds": 9, "run.evaluate_every": 4, "run.evaluate_last": last})
        result = execute(build(load(document)), tmp_path / str(last))
        assert [line["round"] for line in result.history if "accuracy" in line] == sorted({*wanted, 8})


def test_a_commit_that_fails_leaves_the_last_good_checkpoint(
    small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = small({"strategy": {"name": "scaffold", "batch_size": 16, "steps": 2}, "run.rounds": 6})

    def setup() -> Setup:
        return build(load(document))

    execute(setup(), tmp_path / "whole")
    write = ClientMemory._write

    def failing(memory: ClientMemory, clients: Tensor, changed: Named) -> None:
        write(memory, clients, changed)
        if memory.commits == 5:
            raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(ClientMemory, "_write", failing)
        with pytest.raises(OSError, match="no room"):
            execute(setup(), tmp_path / "part")
    execute(setup(), tmp_path / "part", resume=True)
    same(tmp_path / "whole", tmp_path / "part")
