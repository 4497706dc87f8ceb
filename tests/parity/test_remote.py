"""Clients that are reached by messages alone give the serial executor's bits: every strategy, codec, selector."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedopt import attacks, compression, keys, models, strategies
from fedopt.compressed import Compressed
from fedopt.compression import feedback
from fedopt.data import pool
from fedopt.engine.adversary import Adversary, Group, Schedule
from fedopt.engine.attackers import Attacking, Told, refuse
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.remote import VERSION, Elsewhere, Remote
from fedopt.engine.resident import Resident
from fedopt.engine.stacked import Stacked
from fedopt.engine.versions import NONE, Versions
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.registry import ConfigError, facts
from fedopt.surveyed import Surveyed
from fedopt.testing.strategies import Played, compose, horizontal, play, small_federation, small_problem
from fedopt.types import Batches, FedoptError, Silence, Strategy
from fedopt.wire.payload_pb2 import Up
from tests.families import few

SIZES = (7, 5, 9, 4, 6, 12, 3, 8, 5)
ROUNDS = 4
BATCHES = Batches(size=4)


class Near:
    """A carrier to clients in this process, who answer in any order."""

    def __init__(self, problem: Problem, strategy: Strategy, folder: Path | None = None) -> None:
        if isinstance(strategy, Compressed):
            strategy = replace(strategy, spoken=True)
        programs = strategy.programs(problem)
        self.residents = [
            Resident(problem, programs, i, Versions(programs.memory, None if folder is None else folder / str(i)))
            for i in range(problem.clients)
        ]
        self.order = random.Random(0)

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        for row in self.order.sample(range(len(clients)), len(clients)):
            client = clients[row]
            answer = self.residents[client].answer(message(row))
            assert len(answer) <= limit
            yield client, answer


def problem_for(strategy: str, dtype: torch.dtype = torch.float32) -> Problem:
    data = small_federation(SIZES, dtype=dtype)
    module = models.build(
        "mlp", {"hidden": [7], "activation": "tanh"}, inputs=(5,), classes=3, vocabulary=None, key=keys.root(0),
        dtype=dtype,
    )  # fmt: skip
    return small_problem(pool(data) if facts(strategies.registry.get(strategy)).get("pooled") else data, module)


def left(played: Played) -> list[Any]:
    """Everything at the server, round by round, but what it keeps of clients."""
    found = [(s.state, s.replies.vectors, s.replies.weights, s.replies.metrics) for s in played.steps]
    ids = [(s.replies.clients, s.replies.rejected, s.replies.silent) for s in played.steps]
    flat: list[Any] = pytree.tree_leaves((found, ids))
    return flat


def assert_same(got: Played, wanted: Played) -> None:
    for one, other in zip(left(got), left(wanted), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert one == other


def assert_same_memory(near: Near, got: Played, wanted: Played) -> None:
    """What each client kept is what the simulation kept of it."""
    everybody = torch.arange(got.problem.clients)
    versions = got.memory.of(everybody)[VERSION].tolist()
    for name, rows in wanted.memory.of(everybody).items():
        for resident, version, row in zip(near.residents, versions, rows, strict=True):
            assert torch.equal(resident.versions.at(version % (1 << 64))[name], row), name


def compared(strategy: Strategy, problem: Problem, folder: Path | None = None) -> tuple[Played, Played]:
    wanted = play(problem, strategy, ROUNDS)
    near = Near(problem, strategy, folder)
    got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(near))
    assert_same(got, wanted)
    assert_same_memory(near, got, wanted)
    return got, wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", few(horizontal()))
def test_every_strategy(name: str, dtype: torch.dtype) -> None:
    problem = problem_for(name, dtype)
    compared(compose(name, lr=0.1, batches=BATCHES, participation=selection(count=min(6, problem.clients))), problem)


GIVEN: dict[str, dict[str, Any]] = {"dasha": {"a": 0.5}, "diana": {"alpha": 0.5}, "marina": {"whole": 0.4}}
"""Options of feedbacks, that go with a codec that promises nothing."""


def pairs() -> list[Any]:
    """All codecs with all feedbacks; the quick ones have Top-K or EF21 in them."""
    every = itertools.product(compression.registry.names(), feedback.registry.names())
    return [
        pytest.param(
            name, memory, id=f"{name} {memory}", marks=() if name == "topk" or memory == "ef21" else pytest.mark.slow
        )
        for name, memory in every
    ]


def compressed(problem: Problem, name: str, memory: str) -> Compressed:
    options = dict(facts(compression.registry.get(name)).get("examples", ({},))[0])
    codec = compression.build(name, options, shapes=problem.network.spec.shapes)
    inner = compose("fedavg", lr=0.1, batches=BATCHES, participation=selection(count=6))
    return Compressed(inner, codec, feedback.build(memory, GIVEN.get(memory, {})))


@pytest.mark.parametrize(("name", "memory"), pairs())
def test_every_codec_and_feedback(name: str, memory: str, tmp_path: Path) -> None:
    problem = problem_for("fedavg")
    got, _ = compared(compressed(problem, name, memory), problem, tmp_path)
    assert got.params is not None and bool(torch.isfinite(got.params).all())


@pytest.mark.parametrize("name", ["pow_d", "fedcor", "delta", "oort"])
def test_selectors_that_ask_clients(name: str) -> None:
    problem = problem_for("fedavg")
    part = selection(name, count=4)
    strategy = compose("fedavg", lr=0.1, batches=BATCHES, participation=part)
    compared(Surveyed(strategy, part, BATCHES) if part.measures | part.surveys else strategy, problem)


@pytest.mark.parametrize("validation", ["server", "clients"])
def test_isp(validation: str) -> None:
    problem = problem_for("fedavg")
    count = {"name": "isp", "start": 4, "warmup": 1, "period": 2, "validation": validation}
    part = selection("uniform", count=count)
    strategy = compose("fedavg", lr=0.1, batches=BATCHES, participation=part)
    compared(Surveyed(strategy, part, BATCHES) if part.surveys else strategy, problem)


@pytest.mark.parametrize(
    "name", ["scaffold", pytest.param("fedavg", marks=pytest.mark.slow), pytest.param("ditto", marks=pytest.mark.slow)]
)
def test_clients_with_another_executor_agree_to_rounding(name: str) -> None:
    problem = problem_for(name, torch.float64)
    strategy = compose(name, lr=0.1, batches=BATCHES, participation=selection(count=6))
    near = Near(problem, strategy)
    for resident in near.residents:
        resident.executor = Stacked()
    wanted, got = play(problem, strategy, ROUNDS), play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(near))
    for one, other in zip(left(got), left(wanted), strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert all(not resident.executor.refused for resident in near.residents if isinstance(resident.executor, Stacked))


class Mute(Near):
    """A carrier that loses some answers, by client."""

    lost: frozenset[int] = frozenset({1, 4})

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        for client, answer in super().ask(number, clients, message, limit):
            yield client, Silence("gone") if client in self.lost else answer


def test_answers_that_were_lost_are_as_of_clients_that_dropped_out() -> None:
    """SCAFFOLD: who was lost changed his memory, and starts the next time from what the server knows of."""
    problem = problem_for("scaffold")
    strategy = compose("scaffold", lr=0.1, batches=BATCHES)
    kept = torch.tensor([c for c in range(problem.clients) if c not in Mute.lost])
    # the same federation without these two: whom they are has no influence on anybody's batches
    wanted = play(problem._replace(there=kept), strategy, ROUNDS)
    near = Mute(problem, strategy)
    got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(near))
    assert all([r.client for r in step.replies.silent] == sorted(Mute.lost) for step in got.steps)
    for step, other in zip(got.steps, wanted.steps, strict=True):
        assert torch.equal(step.replies.vectors["delta"], other.replies.vectors["delta"])
        assert torch.equal(step.state.model["params"], other.state.model["params"])
    assert got.memory.of(torch.tensor(sorted(Mute.lost)))[VERSION].tolist() == [NONE, NONE]


def test_too_few_answers_are_no_exchange() -> None:
    problem = problem_for("fedavg")
    strategy = compose("fedavg", lr=0.1, batches=BATCHES)
    with pytest.raises(FedoptError, match=r"8 answers are needed, 7 of 9 clients gave one \(client 1: gone\)"):
        play(problem, Elsewhere(strategy), 1, executor=Remote(Mute(problem, strategy), least=8))


class Lying(Near):
    """A carrier whose client 2 says something else."""

    def __init__(self, problem: Problem, strategy: Strategy, lie: Callable[[bytes], bytes]) -> None:
        super().__init__(problem, strategy)
        self.lie = lie

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        for client, answer in super().ask(number, clients, message, limit):
            assert isinstance(answer, bytes)
            yield client, self.lie(answer) if client == 2 else answer


def altered(change: Callable[[Up], object]) -> Callable[[bytes], bytes]:
    def lie(answer: bytes) -> bytes:
        found = Up.FromString(answer)
        change(found)
        return found.SerializeToString()

    return lie


def nan_body(found: Up) -> None:
    found.vectors[0].body = torch.full((found.vectors[0].entries,), torch.nan).numpy().tobytes()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda answer: b"", "version 1 of the protocol is needed"),
        (lambda answer: bytes(40), "no message of the protocol"),
        (lambda answer: answer[: len(answer) // 2], "no message of the protocol"),
        (altered(nan_body), "entries of its delta are NaN or Inf"),
        (altered(lambda found: found.ClearField("metrics")), "the numbers loss, steps are needed"),
        (altered(lambda found: setattr(found.metrics[1], "real", 1.0)), "the numbers loss, steps are needed"),
        (altered(lambda found: setattr(found, "client", 3)), "the answer of client 2"),
        (altered(lambda found: setattr(found, "exchange", 1)), "the answer of client 2 in exchange"),
        (altered(lambda found: setattr(found, "weight", -1.0)), "a weight >= 0 is needed"),
        (altered(lambda found: setattr(found.vectors[0], "entries", 5)), "vector 'delta' with"),
        (altered(lambda found: setattr(found, "refused", "no room")), "no room"),
    ],
)  # fmt: skip
def test_a_client_that_sends_garbage_is_rejected_and_the_others_are_not(
    lie: Callable[[bytes], bytes], reason: str
) -> None:
    problem = problem_for("fedavg")
    strategy = compose("fedavg", lr=0.1, batches=BATCHES)
    wanted = play(problem._replace(there=torch.tensor([0, 1, 3, 4, 5, 6, 7, 8])), strategy, ROUNDS)
    got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(Lying(problem, strategy, lie)))
    for step, other in zip(got.steps, wanted.steps, strict=True):
        [rejection] = step.replies.rejected
        assert rejection.client == 2 and reason in rejection.reason
        torch.testing.assert_close(step.replies.vectors["delta"], other.replies.vectors["delta"], rtol=1e-5, atol=1e-7)


def test_a_program_that_raises_is_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_for("fedavg")
    strategy = compose("fedavg", lr=0.1, batches=BATCHES)
    near = Near(problem, strategy)
    broken = near.residents[3]
    shards = problem.data.splits["train"]
    data = problem.data._replace(splits={"train": shards._replace(y=shards.y + 100)})
    broken.problem = problem._replace(data=data)
    played = play(problem, Elsewhere(strategy), 1, executor=Remote(near))
    [rejection] = played.steps[0].replies.rejected
    assert rejection.client == 3 and "client 3 (client 3) failed in program 'train' at step 0" in rejection.reason
    assert "refused" in caplog.text


def test_the_same_question_is_worked_on_once() -> None:
    problem = problem_for("scaffold")
    strategy = compose("scaffold", lr=0.1, batches=BATCHES)
    near = Near(problem, strategy)
    asked: list[bytes] = []

    class Again(Near):
        residents = near.residents

        def __init__(self) -> None:
            self.order = random.Random(0)

        def ask(
            self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
        ) -> Iterator[tuple[int, bytes | Silence]]:
            asked.extend(message(row) for row in range(len(clients)))
            for row, client in enumerate(clients):
                first = near.residents[client].answer(asked[row - len(clients)])
                assert near.residents[client].answer(asked[row - len(clients)]) is first
                yield client, first

    play(problem, Elsewhere(strategy), 2, executor=Remote(Again()))
    assert len(asked) == 2 * problem.clients


def test_a_server_that_goes_on_from_a_checkpoint_finds_the_clients_memory(tmp_path: Path) -> None:
    """It died two exchanges after the checkpoint, and all clients were started anew."""
    problem = problem_for("scaffold")
    strategy = compose("scaffold", lr=0.1, batches=BATCHES, participation=selection(count=6))
    apart, key = Elsewhere(strategy), keys.root(1)
    wanted = play(problem, strategy, 6)

    def begun() -> tuple[Near, Remote, ClientMemory]:
        near = Near(problem, strategy, tmp_path)
        return near, Remote(near), ClientMemory(apart.programs(problem).memory, problem.clients)

    _, remote, memory = begun()
    state = apart.init(problem, keys.fold(key, "init"))
    parts = (problem, apart)
    stored: tuple[Any, Any] = ({}, None)
    for step in itertools.islice(exchanges(*parts, remote, Adversary(), memory, state, key), 5):
        if step.number == 2:
            stored = memory.snapshot(), step.state
            remote.settled(memory)
    _, remote, memory = begun()
    memory.restore(stored[0])
    remote.settled(memory)
    steps = list(itertools.islice(exchanges(*parts, remote, Adversary(), memory, stored[1], key, 3), 3))
    assert not any(step.replies.rejected for step in steps)
    assert torch.equal(steps[-1].state.model["params"], wanted.state.model["params"])
    assert all(len(list((tmp_path / str(i)).iterdir())) <= 3 for i in range(problem.clients))


def test_a_client_that_lost_its_memory_says_so(tmp_path: Path) -> None:
    problem = problem_for("scaffold")
    strategy = compose("scaffold", lr=0.1, batches=BATCHES)
    near = Near(problem, strategy, tmp_path)
    remote = Remote(near)
    apart, key = Elsewhere(strategy), keys.root(1)
    memory = ClientMemory(apart.programs(problem).memory, problem.clients)
    loop = exchanges(problem, apart, remote, Adversary(), memory, apart.init(problem, key), key)
    next(loop)
    for path in (tmp_path / "5").iterdir():
        path.unlink()
    near.residents[5].versions = Versions(apart.programs(problem).home or {}, tmp_path / "5")
    [rejection] = next(loop).replies.rejected
    assert rejection.client == 5 and "this client does not have it" in rejection.reason


@pytest.mark.parametrize(
    "groups",
    [
        [("sign_flip", {"scale": 2.0}, [1, 4], Schedule())],
        [("gaussian", {"sigma": 0.1, "around": "own"}, [0, 5, 6], Schedule())],
        [("model_replacement", {}, [2, 3], Schedule(first=1, clients=0.7))],
        [("gaussian", {"sigma": 0.1, "around": "own"}, [0], Schedule()), ("label_flip", {}, [3, 5], Schedule())],
        [("label_flip", {}, [3, 5], Schedule(first=1)), ("sign_flip", {}, [3], Schedule(last=2))],
    ],
    ids=lambda groups: " and ".join(name for name, *_ in groups),
)
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_attackers_write_themselves_what_the_adversary_would_write(
    name: str, groups: list[tuple[str, dict[str, Any], list[int], Schedule]]
) -> None:
    problem = problem_for(name)
    every = tuple(Group(attacks.build(attack, given), torch.tensor(ids), when) for attack, given, ids, when in groups)
    adversary = Adversary(every)
    refuse(adversary)
    problem = problem._replace(data=adversary.poison(problem.data, keys.root(7)))
    strategy = compose(name, lr=0.1, batches=BATCHES, participation=selection(count=7))
    wanted = play(problem, strategy, ROUNDS, adversary=adversary)
    near = Near(problem, Attacking(strategy, adversary))
    got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(near), adversary=Told(*adversary))
    assert_same(got, wanted)
    assert not torch.equal(wanted.params, play(problem, strategy, ROUNDS).params)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["alie", "ipm"])
def test_an_attack_that_sees_others_is_refused(name: str) -> None:
    adversary = Adversary((Group(attacks.build(name, {}), torch.tensor([0])),))
    with pytest.raises(ConfigError, match=rf"attack\.0\.name: '{name}' sees what other clients send"):
        refuse(adversary)
