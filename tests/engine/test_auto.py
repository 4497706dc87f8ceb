"""The auto executor keeps the fastest, says why, and goes on with it after a resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt.engine.auto import Auto
from fedopt.engine.serial import Serial
from fedopt.problem import Problem
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Exchange, FedoptError, Named, Programs, Replies


class Clock:
    """Time that passes only where a test says so, so that nothing beside it decides which executor is the fastest."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedopt.engine.auto.time", CLOCK)


class Slowed(Serial):
    """The serial executor, which takes as long as it is told."""

    def __init__(self, seconds: float, fails: bool = False) -> None:
        self.seconds, self.fails = seconds, fails
        self.maps = self.closed = 0

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        if self.fails:
            raise FedoptError("no workers here")
        self.maps += 1
        CLOCK.now += self.seconds
        return super().map(problem, programs, exchange, memory, key)

    def plan(self) -> dict[str, Any]:
        return {"slowed": self.seconds}

    def close(self) -> None:
        self.closed += 1


ROUNDS = 40


def test_the_fastest_is_kept_and_every_exchange_counts() -> None:
    problem = small_problem(small_federation((5, 4, 6)))
    slow, fast, pool = Slowed(0.05), Slowed(0.001), Slowed(0.02)
    auto = Auto({"slow": slow, "fast": fast}, {"ray 2 x fast": (2, lambda: pool)}, exchanges=10**9)
    made = compose("fedavg")
    played = play(problem, made, ROUNDS, executor=auto)
    assert auto.choice == {"train": "fast"}
    assert auto.reason["train"].startswith("fast took ") and "slow" in auto.reason["train"]
    assert slow.maps + fast.maps + pool.maps == ROUNDS and pool.maps >= 1
    assert pool.closed == 1
    alone = play(problem, made, ROUNDS)
    for got, wanted in zip(played.steps, alone.steps, strict=True):
        assert torch.equal(got.state.model["params"], wanted.state.model["params"])


def test_a_pool_is_started_only_where_it_can_pay() -> None:
    def never() -> Serial:
        raise AssertionError("started")

    auto = Auto({"stacked": Slowed(0.001)}, {"ray 2 x stacked": (2, never)}, exchanges=10)
    play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), 8, executor=auto)
    assert auto.choice == {"train": "stacked"}


def test_a_pool_that_cannot_run_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    auto = Auto(
        {"stacked": Slowed(0.001)}, {"ray 2 x stacked": (2, lambda: Slowed(0.001, fails=True))}, exchanges=10**9
    )
    played = play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), 8, executor=auto)
    assert auto.choice == {"train": "stacked"} and len(played.steps) == 8
    assert "no workers here" in caplog.text


def test_a_resumed_run_takes_the_choice_over() -> None:
    auto = Auto({"slow": Slowed(0.02), "fast": Slowed(0.001)}, {}, exchanges=1)
    play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), ROUNDS, executor=auto)
    plan = auto.plan()
    assert plan["choice"] == {"train": "fast"} and plan["plans"] == {"fast": {"slowed": 0.001}}
    slow, fast = Slowed(0.001), Slowed(0.001)
    again = Auto({"slow": slow, "fast": fast}, {}, exchanges=1)
    again.restore(plan)
    play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), 3, executor=again)
    assert (slow.maps, fast.maps) == (0, 3)


def test_a_choice_that_is_not_at_hand_is_an_error() -> None:
    auto = Auto({"stacked": Slowed(0.001)}, {}, exchanges=1)
    auto.restore({"choice": {"train": "ray 2 x stacked"}, "plans": {"ray 2 x stacked": {}}})
    with pytest.raises(FedoptError, match=r"'ray 2 x stacked', which is not at hand.*fedopt\[ray\]"):
        play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), 1, executor=auto)


class Warming(Slowed):
    """Slow while it is warming up, then at once."""

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        self.warming = self.maps < 3
        self.seconds = 0.1 if self.warming else 0.001
        return super().map(problem, programs, exchange, memory, key)


def test_what_is_warming_up_is_not_given_up() -> None:
    problem = small_problem(small_federation((5, 4, 6)))
    late = Warming(0.1)
    auto = Auto({"even": Slowed(0.01), "late": late}, {}, exchanges=20)
    play(problem, compose("fedavg"), ROUNDS, executor=auto)
    assert auto.choice == {"train": "late"}


class Lucky(Slowed):
    """Fast while it is looked at, slower afterwards."""

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        self.seconds = 0.046 if self.maps < 4 else 0.15
        return super().map(problem, programs, exchange, memory, key)


def test_those_that_are_near_take_turns() -> None:
    steady, lucky, far = Slowed(0.05), Lucky(0.0), Slowed(0.5)
    auto = Auto({"steady": steady, "lucky": lucky, "far": far}, {}, exchanges=20)
    play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), ROUNDS, executor=auto)
    assert auto.choice == {"train": "steady"}
    assert (lucky.maps, far.maps) == (4 + 9, 2), "a warm one and three timed ones, and three turns of three"


class Failing(Slowed):
    """A pool that is gone when its turn comes in the finals."""

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        self.fails = self.maps == 5
        return super().map(problem, programs, exchange, memory, key)


def test_a_finalist_that_cannot_run_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pool = Failing(0.08)
    auto = Auto({"stacked": Slowed(0.08)}, {"ray 2 x stacked": (2, lambda: pool)}, exchanges=10**9)
    played = play(small_problem(small_federation((5, 4, 6))), compose("fedavg"), 30, executor=auto)
    assert auto.choice == {"train": "stacked"} and len(played.steps) == 30
    assert (pool.maps, pool.closed) == (5, 1) and "no workers here" in caplog.text


def test_a_run_goes_on_where_there_are_other_cores() -> None:
    problem = small_problem(small_federation((5, 4, 6)))
    there = Auto({"stacked": Slowed(0.03), "stacked x 2": Slowed(0.001)}, {}, exchanges=20)
    play(problem, compose("fedavg"), ROUNDS, executor=there)
    assert there.choice == {"train": "stacked x 2"}
    more, plain = Slowed(0.001), Slowed(0.001)
    here = Auto({"stacked": plain, "stacked x 8": more}, {}, exchanges=20)
    here.restore(there.plan())
    play(problem, compose("fedavg"), 2, executor=here)
    assert (more.maps, plain.maps) == (2, 0)
    assert here.plan()["plans"] == {"stacked x 8": more.plan()}
