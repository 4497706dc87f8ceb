"""What every strategy over columns keeps to, whatever its method: a new one is measured without an edit here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedopt import keys
from fedopt.compression import build
from fedopt.engine.adversary import Adversary
from fedopt.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.problem import Problem
from fedopt.registry import facts, parameters
from fedopt.strategies import registry
from fedopt.testing.strategies import Played, play, spoiled, vertical
from fedopt.types import Batches, Client, FedoptError, Strategy
from tests.vfl.toy import toy

NONE = build("none", {"dtype": "float64"})
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in vertical()),
    ("egvfl", {"form": "augmented"}),
    ("egvfl", {"form": "dual"}),
    ("egvfl", {"form": "split"}),
    ("egvfl", {"adaptive": True, "output": "average", "l1": 0.01}),
    ("egvfl_reference", {"take": 2}),
    ("egvfl_reference", {"rows": 0.3, "features": 0.5}),
    ("vertical_gd", {"acceleration": "nesterov"}),
    ("split_learning", {"batches": Batches(size=20, steps=3)}),
]
ROUNDS = 12


def made(name: str, options: dict[str, Any]) -> Strategy:
    component = registry.get(name)
    given: dict[str, Any] = {"loss": "squares", **options}
    if "codec" in parameters(component):
        given["codec"] = NONE
    if name == "split_learning":
        given = {"batches": Batches(size=20), "lr": 0.02, **given}
    strategy: Strategy = component(**given)
    return strategy


def held(played: Played) -> Tensor:
    return played.memory.of(torch.arange(played.problem.clients))["weights"]


@pytest.fixture(params=OPTIONS, ids=lambda param: f"{param[0]}({','.join(map(str, param[1].values()))})")
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return made(*request.param)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return toy(3, people=40, features=8).problem


def test_it_says_that_it_is_vertical_and_has_what_is_scored(strategy: Strategy, problem: Problem) -> None:
    assert facts(type(strategy))["vertical"] and facts(type(strategy))["reference"]
    programs = strategy.programs(problem)
    assert "tell train" in programs.work
    told = facts(type(strategy)).get("vectors")
    lengths = getattr(strategy, "lengths", lambda problem: {})(problem)
    assert told is None or set(told) == set(lengths)
    assert strategy.model(problem, strategy.init(problem, keys.root(0))) is None, "nobody has all weights"


def test_parties_come_nearer_to_the_solution(strategy: Strategy) -> None:
    t = toy(3, people=40, features=8)
    start = float((0.5 * t.b.square()).mean())
    played = play(t.problem, strategy, 150)
    prediction = t.a @ t.weights(held(played))
    assert float(0.5 * (prediction - t.b).square().mean()) < 0.5 * start


def test_the_server_is_sent_no_features_and_parties_no_labels(strategy: Strategy, problem: Problem) -> None:
    people, width = 40, problem.data.inputs[0]
    labels = problem.data.server["train"].y
    for step in play(problem, strategy, 6).steps:
        exchange = step.replies.exchange
        for vector in step.replies.vectors.values():
            assert vector.shape[1] <= people, "outputs, not features"
        for value in (*exchange.down.values(), *exchange.own.values()):
            assert value.dim() == 0 or value.shape[-1] != width * people
            assert value.numel() != people or not torch.equal(value.flatten(), labels)


def test_memory_is_as_declared(strategy: Strategy, problem: Problem) -> None:
    declared = strategy.programs(problem).memory
    for step in play(problem, strategy, 4).steps:
        for name, rows in step.replies.memory.items():
            assert rows.shape[1:] == declared[name].shape and rows.dtype == declared[name].dtype, name


def test_a_program_tells_the_form_of_its_answer_before_it_has_data(strategy: Strategy, problem: Problem) -> None:
    programs = strategy.programs(problem)
    for step in play(problem, strategy, 4).steps:
        exchange = step.replies.exchange
        own = {name: value[0] for name, value in exchange.own.items()}
        client = Client(exchange.down, own, programs.memory, keys.root(0), torch.tensor(0))
        program = programs.work[exchange.program]
        blank = program.finish(client, program.start(client))
        assert {n: v.shape for n, v in blank.vectors.items()} == {
            n: v.shape[1:] for n, v in step.replies.vectors.items()
        }
        assert blank.metrics.keys() == step.replies.metrics.keys()
        assert blank.memory.keys() == step.replies.memory.keys()


def test_the_same_key_gives_the_same_bits(strategy: Strategy, problem: Problem) -> None:
    one, other = (play(problem, strategy, ROUNDS) for _ in range(2))
    assert torch.equal(held(one), held(other))


def test_stacked_goes_the_way_of_serial(strategy: Strategy, problem: Problem) -> None:
    executor = Stacked()
    one, other = play(problem, strategy, ROUNDS), play(problem, strategy, ROUNDS, executor=executor)
    assert not executor.refused
    torch.testing.assert_close(held(one), held(other), rtol=1e-10, atol=1e-12)


def test_a_run_goes_on_from_a_checkpoint(strategy: Strategy, problem: Problem, tmp_path: Path) -> None:
    whole = play(problem, strategy, ROUNDS)
    key = keys.root(1)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    number = 0
    while state.round < ROUNDS:
        # every exchange by a process of its own
        step = next(exchanges(problem, strategy, Serial(), Adversary(), memory, state, key, number))
        number, state = number + 1, step.state
        stored = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(number, state, memory.snapshot(), {}), keep=1))
        state = stored.state
        memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
        memory.restore(stored.memory)
    assert torch.equal(held(whole), memory.of(torch.arange(problem.clients))["weights"])
    for a, b in zip(pytree.tree_leaves(whole.state), pytree.tree_leaves(state), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def flaky(strategy: Strategy, lost: Any) -> Strategy:
    """The strategy whose answers are lost where `lost(client)`."""
    more = {n: getattr(strategy, n) for n in ("lengths", "predicted") if hasattr(strategy, n)}
    return SimpleNamespace(  # type: ignore[return-value]
        programs=lambda problem: spoiled(strategy.programs(problem), lost),
        init=strategy.init,
        plan=strategy.plan,
        absorb=strategy.absorb,
        model=strategy.model,
        **more,
    )


def test_a_lost_answer_is_made_up_for(strategy: Strategy, problem: Problem) -> None:
    def lost(client: Client) -> Tensor:
        return keys.uniform(keys.fold(client.key, "lost"), 1)[0] < 0.04

    played = play(problem, flaky(strategy, lost), 150)
    assert any("parties" in step.info for step in played.steps), "something was lost"
    t = toy(3, people=40, features=8)
    prediction = t.a @ t.weights(held(played))
    assert float((prediction - t.b).square().mean()) < 0.5 * float(t.b.square().mean())


def test_a_party_that_is_gone_ends_the_run_by_name(strategy: Strategy, problem: Problem) -> None:
    class Without(Serial):
        def map(self, problem: Problem, programs: Any, exchange: Any, memory: Any, key: Tensor) -> Any:
            replies = super().map(problem, programs, exchange, memory, key)
            there = replies.clients != 1
            if exchange.reduce == "mean" or bool(there.all()):
                rows = exchange._replace(reduce="rows")
                replies = super().map(problem, programs, rows, memory, key)
            cut = replies._replace(
                exchange=exchange,
                clients=replies.clients[there],
                vectors={n: v[there] for n, v in replies.vectors.items()},
                weights=replies.weights[there],
                metrics={n: v[there] for n, v in replies.metrics.items()},
                memory={n: v[there] for n, v in replies.memory.items()},
            )
            return cut

    with pytest.raises(FedoptError, match=r'5 exchanges in a row had no answer from client 1.*absent = "without"'):
        play(problem, strategy, 30, executor=Without())
    without = dataclasses.replace(strategy, absent="without", patience=2)  # type: ignore[type-var]
    played = play(problem, without, 40, executor=Without())
    assert played.state.presence.there.tolist() == [True, False, True]
    assert bool(torch.isfinite(held(played)).all())
