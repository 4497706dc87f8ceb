"""The ray executor goes the way of its inner one: of serial bit for bit, whoever ran what; of stacked to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

pytest.importorskip("ray", reason="needs Ray: pip install 'fedopt[ray]'")

from fedopt import keys, models, strategies
from fedopt.data import pool
from fedopt.engine.ray import Ray
from fedopt.engine.stacked import Stacked
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.registry import facts
from fedopt.testing.strategies import Played, compose, horizontal, play, small_federation, small_problem
from fedopt.types import Batches, Exchange
from tests.families import few

SIZES = (7, 5, 9, 4, 6, 12, 3, 8, 5)
ROUNDS = 5
BATCHES = Batches(size=4)
STRATEGIES = horizontal()
SOME = [
    name if name in ("fedavg", "scaffold", "ditto") else pytest.param(name, marks=pytest.mark.slow)
    for name in STRATEGIES
]
"""Of them, a few beside the slow tests."""


@pytest.fixture(
    scope="module",
    params=[2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)],
    ids=lambda workers: f"{workers} workers",
)
def pool_of(request: pytest.FixtureRequest) -> Iterator[Ray]:
    executor = Ray(workers=request.param)
    yield executor
    executor.close()


@pytest.fixture
def ray(pool_of: Ray) -> Ray:
    """An executor without a past; a test sets what is inside."""
    pool_of.width, pool_of.refused = {}, {}
    return pool_of


def having(executor: Ray, inner: Any) -> Ray:
    executor.inner = inner
    return executor


def problem_for(strategy: str, dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = SIZES) -> Problem:
    data = small_federation(sizes, dtype=dtype)
    options = {"hidden": [7], "activation": "tanh"}
    module = models.build("mlp", options, inputs=(5,), classes=3, vocabulary=None, key=keys.root(0), dtype=dtype)
    return small_problem(pool(data) if facts(strategies.registry.get(strategy)).get("pooled") else data, module)


def composed(strategy: str, problem: Problem) -> Any:
    return compose(strategy, lr=0.1, batches=BATCHES, participation=selection(count=min(6, problem.clients)))


def leaves(played: Played) -> list[Any]:
    """Everything that the federation left, round by round."""
    found = [(s.state, s.replies.vectors, s.replies.weights, s.replies.metrics, s.replies.memory) for s in played.steps]
    ids = [(s.replies.clients, s.replies.rejected) for s in played.steps]
    flat: list[Any] = pytree.tree_leaves((found, ids, played.memory.snapshot()))
    return flat


def assert_same_bits(got: Played, wanted: Played) -> None:
    for one, other in zip(leaves(got), leaves(wanted), strict=True):
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other)
        else:
            assert one == other


def moved(played: Played) -> bool:
    """Whether the first and the last round have other losses, or another model."""
    first, last = (played.steps[i] for i in (0, -1))
    models = [played.strategy.model(played.problem, s.state) for s in (first, last)]
    losses = [s.replies.metrics["loss"] for s in (first, last)]
    if losses[0].shape != losses[1].shape or not torch.equal(*losses):
        return True
    return all(m is not None for m in models) and not torch.equal(*(m["params"] for m in models if m is not None))


def assert_close(got: Played, wanted: Played) -> None:
    for one, other in zip(leaves(got), leaves(wanted), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("strategy", few(STRATEGIES))
def test_serial_inside_has_the_bits_of_serial(ray: Ray, strategy: str, dtype: torch.dtype) -> None:
    problem = problem_for(strategy, dtype)
    made = composed(strategy, problem)
    wanted = play(problem, made, ROUNDS)
    assert_same_bits(play(problem, made, ROUNDS, executor=having(ray, "serial")), wanted)
    assert moved(wanted), "nothing moved"


@pytest.mark.parametrize("strategy", SOME)
def test_stacked_inside_is_stacked_to_rounding(ray: Ray, strategy: str) -> None:
    problem = problem_for(strategy)
    made, ray = composed(strategy, problem), having(ray, "stacked")
    wanted = play(problem, made, ROUNDS, executor=Stacked())
    got = play(problem, made, ROUNDS, executor=ray)
    assert not ray.refused
    assert_close(got, wanted)
    assert_same_bits(play(problem, made, ROUNDS, executor=ray), got)


def test_a_cohort_of_many_lanes(ray: Ray) -> None:
    """More clients than lanes, and calls of several lanes each, some of which end before an earlier one."""
    sizes = tuple(1 + (7 * i) % 23 for i in range(150))
    problem = problem_for("fedavg", sizes=sizes)
    made = compose("fedavg", lr=0.1, batches=BATCHES)
    wanted = play(problem, made, 3)
    assert_same_bits(play(problem, made, 3, executor=having(ray, "serial")), wanted)


def test_rejected_clients_are_the_same(ray: Ray) -> None:
    problem = problem_for("fedavg")
    shards = problem.data.splits["train"]
    x = shards.x.clone()
    x[shards.index[int(shards.offsets[2])]] = torch.nan
    problem = problem._replace(data=problem.data._replace(splits={"train": shards._replace(x=x)}))
    made = compose("fedavg", lr=0.1, batches=BATCHES)
    wanted = play(problem, made, 2)
    assert [[r.client for r in step.replies.rejected] for step in wanted.steps] == [[2], [2]]
    assert_same_bits(play(problem, made, 2, executor=having(ray, "serial")), wanted)
    got = play(problem, made, 2, executor=having(ray, "stacked"))
    assert [step.replies.rejected for step in got.steps] == [step.replies.rejected for step in wanted.steps]


@pytest.mark.parametrize("inner", ["serial", "stacked"])
def test_rows_come_back_in_client_order(ray: Ray, inner: str) -> None:
    problem = problem_for("fedavg")
    made = compose("fedavg", lr=0.1, batches=BATCHES)
    programs, key = made.programs(problem), keys.root(0)
    asked = made.plan(problem, made.init(problem, key), key)._replace(reduce="rows")
    one, other = (e.map(problem, programs, asked, {}, key) for e in (having(ray, inner), Stacked()))
    assert one.clients.tolist() == list(range(len(SIZES)))
    torch.testing.assert_close(one.vectors, other.vectors, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=0)


@pytest.mark.parametrize("inner", ["serial", "stacked"])
def test_evaluation_on_clients(ray: Ray, inner: str) -> None:
    problem = problem_for("ditto")
    made = compose("ditto", batches=BATCHES)
    played = play(problem, made, 1)
    everybody = torch.arange(problem.clients)
    model = dict(made.model(problem, played.state) or {})
    asked = Exchange("evaluate", everybody, model, batches=Batches(size=4, shuffle=False))
    memory = played.memory.of(everybody)
    got, wanted = (
        e.map(problem, made.programs(problem), asked, memory, keys.root(0)) for e in (having(ray, inner), Stacked())
    )
    torch.testing.assert_close(got.metrics, wanted.metrics, rtol=1e-12, atol=0)
