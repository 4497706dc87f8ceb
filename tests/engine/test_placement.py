"""Lanes by cost: everybody once, a bound on the longest worker, and what is learnt from measurements."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest

from fedopt.engine import placement
from fedopt.engine.placement import Costs, Queues, cores, memory_limit, place


def test_every_lane_is_placed_once_and_in_order() -> None:
    costs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    placed = place(costs, [1.0, 1.0, 1.0])
    assert sorted(lane for lanes in placed for lane in lanes) == list(range(8))
    assert all(lanes == sorted(lanes) for lanes in placed)
    assert place([], [1.0, 1.0]) == [[], []]


def test_equal_lanes_are_dealt_out_in_turn() -> None:
    assert place([1.0] * 6, [1.0, 1.0]) == [[0, 2, 4], [1, 3, 5]]


def test_the_longest_first_is_within_four_thirds_of_the_best() -> None:
    draw = random.Random(0)
    for _ in range(30):
        costs = [draw.uniform(0.1, 5.0) for _ in range(7)]
        best = min(
            max(sum(c for c, at in zip(costs, choice, strict=True) if at == w) for w in range(2))
            for choice in itertools.product(range(2), repeat=7)
        )
        longest = max(sum(costs[lane] for lane in lanes) for lanes in place(costs, [1.0, 1.0]))
        assert longest <= 4.0 / 3.0 * best + 1e-12


def test_a_slow_worker_gets_less() -> None:
    placed = place([1.0] * 9, [2.0, 1.0])
    assert [len(lanes) for lanes in placed] == [3, 6]


def drained(queues: Queues, worker: int = 0) -> list[list[int]]:
    calls = []
    while queues:
        calls.append(queues.take(worker))
    return calls


def test_a_queue_is_cut_into_calls_of_about_equal_time() -> None:
    queues = Queues([[0, 2, 4, 6, 8]], dict(enumerate([0.1] * 9)), 0.25, 10)  # type: ignore[arg-type]
    assert drained(queues) == [[0, 2], [4, 6], [8]]
    assert drained(Queues([[0, 1, 2]], [0.001] * 3, 0.2, 10)) == [[0, 1, 2]]
    assert drained(Queues([[0, 1, 2]], [5.0] * 3, 0.2, 10)) == [[0], [1], [2]]


def test_a_call_has_so_many_lanes_at_most_and_one_where_nothing_is_known() -> None:
    assert drained(Queues([[0, 1, 2]], [0.0] * 3, 0.2, 2)) == [[0, 1], [2]]
    assert drained(Queues([[0, 1, 2]], None, 0.2, 2)) == [[0], [1], [2]]


def test_groups_are_calls_until_the_last_of_a_queue() -> None:
    queues = Queues([[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]], [0.15] * 12, 0.2, 10, together=4)
    assert queues.take(0) == [0, 1, 2, 3]
    assert queues.take(0) == [8]
    assert queues.take(1) == [4]
    queues.back(0, [0, 1, 2, 3])
    assert queues.take(0) == [0], "those of a dead worker are tried alone"


def test_an_idle_worker_takes_from_the_longest_queue() -> None:
    queues = Queues([[], [0, 3], [1, 2, 4]], [1.0, 1.0, 3.0, 1.0, 3.0], 0.1, 10)
    assert queues.take(0) == [1]
    assert queues.take(1) == [0]


def test_lanes_far_ahead_wait() -> None:
    queues = Queues([[0, 1], [5, 6]], [1.0] * 7, 0.1, 10)
    assert queues.take(1, below=4) == [0]
    assert queues.take(1, below=4) == [1]
    assert queues.take(1, below=4) == [] and bool(queues)
    assert queues.take(0, below=6) == [5]


def test_lanes_of_the_dead_come_back_one_by_one() -> None:
    queues = Queues([[0, 1, 2, 3]], [0.01] * 4, 0.03, 10)
    assert queues.take(0) == [0, 1, 2]
    queues.back(0, [0, 1, 2])
    assert drained(queues) == [[0], [1], [2], [3]]


def test_dropped_lanes_are_forgotten() -> None:
    queues = Queues([[0, 2], [1, 3]], None, 0.2, 10)
    queues.drop(2)
    assert drained(queues) == [[0], [1]]


def test_costs_are_found_from_calls() -> None:
    """Seconds that follow a + b samples are told again after a few calls, and are relative before."""
    costs, draw = Costs(), np.random.default_rng(0)
    assert not costs.known("train")
    np.testing.assert_array_equal(costs.of("train", [0, 1], np.array([3.0, 0.0])), [4.0, 1.0])
    for _ in range(20):
        samples = draw.integers(1, 200, size=8).astype(float)
        truth = 0.01 + 0.002 * samples
        costs.learn("train", 0, list(range(8)), samples, [8], np.array([truth.sum()]), history=False)
    asked = np.array([0.0, 10.0, 100.0])
    np.testing.assert_allclose(costs.of("train", [0, 1, 2], asked), 0.01 + 0.002 * asked, rtol=0.02)
    assert costs.slowness[0] == pytest.approx(1.0, abs=0.1)


def test_a_client_that_always_takes_longer_is_known_for_it() -> None:
    costs = Costs()
    for _ in range(30):
        samples = np.full(4, 10.0)
        costs.learn("train", 0, [0, 1, 2, 3], samples, [1, 1, 1, 1], np.array([0.1, 0.1, 0.1, 0.5]))
    predicted = costs.of("train", [0, 3, 9], np.full(3, 10.0))
    assert predicted[1] / predicted[0] == pytest.approx(5.0, rel=0.1)
    assert predicted[0] == pytest.approx(0.1, rel=0.1)


def test_a_worker_that_always_takes_longer_is_known_for_it() -> None:
    costs = Costs()
    for _ in range(100):
        for worker, factor in ((0, 1.0), (1, 3.0)):
            costs.learn("train", worker, [0, 1], np.full(2, 10.0), [2], np.array([0.2 * factor]), history=False)
    assert costs.slowness[1] / costs.slowness[0] == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(("samples", "seconds"), [([0.0, 0.0], 0.2), ([50.0, 50.0], 0.2)])
def test_costs_are_never_negative(samples: list[float], seconds: float) -> None:
    costs = Costs()
    costs.learn("train", 0, [0, 1], np.array(samples), [2], np.array([seconds]), history=False)
    costs.learn("train", 0, [0], np.array([1.0]), [1], np.array([5.0]), history=False)
    assert (costs.of("train", [0, 1, 2], np.array([0.0, 1.0, 1e6])) >= 0.0).all()


def file(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({}, 6),
    ],
)
def test_cores_respect_affinity_and_cgroups(
    files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    for name, content in files.items():
        file(tmp_path, name, content)
    assert cores(tmp_path) == wanted


def test_memory_respects_cgroups(tmp_path: Path) -> None:
    whole = memory_limit(tmp_path)
    assert whole > 2**28
    file(tmp_path, "memory.max", "max\n")
    assert memory_limit(tmp_path) == whole
    file(tmp_path, "memory.max", "100000000\n")
    assert memory_limit(tmp_path) == 100_000_000
    assert cores(placement._GROUP) >= 1
