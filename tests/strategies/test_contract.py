"""What every strategy of the registry promises, whatever the model, the rule and the schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fedopt import keys, optimizers
from fedopt.aggregators import build as rule
from fedopt.data import Shards, pool
from fedopt.engine.adversary import Adversary
from fedopt.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.optimizers.adam import adam
from fedopt.optimizers.sgd import sgd
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.programs import training
from fedopt.registry import facts
from fedopt.schedules import Schedule
from fedopt.strategies import _server, registry
from fedopt.strategies.fedavg import fedavg
from fedopt.strategies.scaffold import scaffold
from fedopt.testing.strategies import (
    Played,
    check_strategy,
    compose,
    horizontal,
    play,
    small_federation,
    small_problem,
    spoiled,
)
from fedopt.types import Batch, Batches, Client, Exchange, Info, Named, Programs, Replies, Strategy, Uplink

NAMES = horizontal()
POOLED = [name for name in NAMES if facts(registry.get(name)).get("pooled")]
ASKING = [name for name in NAMES if hasattr(registry.get(name), "proceed")]
"""Methods under data similarity, which have models without buffers and need not move in every round."""
STEPPING = [name for name in NAMES if name not in ASKING]
AVERAGING = [name for name in STEPPING if "aggregator" in registry.wants(name)]
SIZES = (7, 12, 5, 9, 11, 4)

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("centralised", {"optimizer_state": "reset"}),
    ("ditto", {"lam": 0.0}),
    ("ditto", {"lam": 3.0}),
    ("fedavg", {"weighting": "uniform"}),
    ("fedavg", {"optimizer_state": "kept"}),
    ("fedavg", {"optimizer_state": "averaged"}),
    ("fedprox", {"mu": 1.0}),
    ("local_only", {"optimizer_state": "reset"}),
]


@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda value: value if isinstance(value, str) else str(value)
)
def test_the_contract(name: str, options: dict[str, Any]) -> None:
    check_strategy(name, **options)


# A contract that nothing can break is none: each of these is wrong in one way, and the law that says so is named.


@dataclass(frozen=True)
class doubling(scaffold):
    """The server adds the clients' models, not their increments."""

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        wrong = {**replies.vectors, "delta": replies.vectors["delta"] + state.model["params"]}
        return super().absorb(problem, state, replies._replace(vectors=wrong), key)


@dataclass(frozen=True)
class forgetful(scaffold):
    """The server's control variate is the mean over the cohort that is added once more in every round."""

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        new, info = super().absorb(problem, state, replies, key)
        return new._replace(own={"control": 2.0 * new.own["control"]}), info


@dataclass(frozen=True)
class ascending(fedavg):
    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        wrong = {**replies.vectors, "delta": -replies.vectors["delta"]}
        return super().absorb(problem, state, replies._replace(vectors=wrong), key)


@dataclass(frozen=True)
class summing(fedavg):
    """Deltas are added up where they should be averaged."""

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        return _server.absorb(self, problem, state, replies, key, scale=float(replies.clients.numel()))


@dataclass(frozen=True)
class partial(fedavg):
    """The client with the lowest number counts twice."""

    def plan(self, problem: Problem, state: Any, key: Tensor) -> Exchange:
        return super().plan(problem, state, key)._replace(reduce="rows")

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        weights = replies.weights.clone()
        weights[:1] *= 2.0
        return super().absorb(problem, state, replies._replace(weights=weights), key)


@dataclass(frozen=True)
class inplace(fedavg):
    def plan(self, problem: Problem, state: Any, key: Tensor) -> Exchange:
        exchange = super().plan(problem, state, key)
        state.model["params"].mul_(0.999)
        return exchange


@dataclass(frozen=True)
class noisy(fedavg):
    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        new, info = super().absorb(problem, state, replies, key)
        return new._replace(model={"params": new.model["params"] + 1e-14 * torch.rand(problem.d)}), info


@dataclass(frozen=True)
class standing(fedavg):
    """A round without answers does not count as one."""

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        new, info = super().absorb(problem, state, replies, key)
        return (new, info) if replies.clients.numel() else (state, info)


@dataclass(frozen=True)
class silent(fedavg):
    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        new, _ = super().absorb(problem, state, replies, key)
        return new, {}


class Own(dict[str, Tensor]):
    """A dict that a checkpoint gives back as another one."""


@dataclass(frozen=True)
class unsaved(fedavg):
    """The number of rounds behind is kept on the side, and the step shrinks from the fourth on."""

    def absorb(self, problem: Problem, state: Any, replies: Replies, key: Tensor) -> tuple[Any, Info]:
        own = Own(state.own)
        own.behind = getattr(state.own, "behind", 0) + 1  # type: ignore[attr-defined]
        new, info = _server.absorb(self, problem, state, replies, key, scale=1.0 / max(own.behind - 2, 1))  # type: ignore[attr-defined]
        return new._replace(own=own), info


@dataclass(frozen=True)
class undeclared(fedavg):
    def programs(self, problem: Problem) -> Programs:
        def finish(client: Client, carry: Any, uplink: Uplink) -> Uplink:
            return uplink._replace(memory={"last": uplink.vectors["delta"]})

        return Programs(
            {**super().programs(problem).work, "train": training(problem, self.optimizer, finish=finish)}, {}
        )


@dataclass(frozen=True)
class padded(fedavg):
    """Counts padding as samples."""

    def programs(self, problem: Problem) -> Programs:
        def along(client: Client, carry: Any, grads: Named, batch: Batch) -> Named:
            return {"rows": carry.extra["rows"] + batch["x"].shape[0]}

        def finish(client: Client, carry: Any, uplink: Uplink) -> Uplink:
            return uplink._replace(weight=carry.extra["rows"])

        train = training(
            problem,
            self.optimizer,
            extra=lambda client: {"rows": torch.zeros((), dtype=problem.dtype)},
            along=along,
            finish=finish,
        )
        return Programs({**super().programs(problem).work, "train": train}, {})


@pytest.mark.parametrize(
    ("faulty", "law"),
    [
        (doubling, "one client"),
        (forgetful, "one client"),
        (ascending, "one client"),
        (summing, "identical"),
        (partial, "relabelling"),
        (inplace, "purity"),
        (noisy, "determinism"),
        (standing, "nobody"),
        (silent, "nobody"),
        (unsaved, "checkpoint"),
        (undeclared, "memory"),
        (padded, "stacking"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_contract_finds_the_fault(faulty: Any, law: str) -> None:
    with pytest.raises(AssertionError, match=f"{faulty.__name__} breaks the law '{law}'"):
        check_strategy(faulty)


def spoil(strategy: Strategy, bad: Callable[[Client], Tensor]) -> Strategy:
    """The strategy whose clients' answers are rejected where `bad` is true."""
    spoilt = SimpleNamespace(
        programs=lambda problem: spoiled(strategy.programs(problem), bad),
        init=strategy.init,
        plan=strategy.plan,
        absorb=strategy.absorb,
        model=strategy.model,
    )
    assert isinstance(spoilt, Strategy)
    return spoilt


def few_samples(client: Client) -> Tensor:
    """True for the clients 2 and 5 of SIZES."""
    return client.samples < 6


@pytest.mark.parametrize("name", AVERAGING)
def test_too_few_for_the_rule_after_rejections_keep_the_model(name: str) -> None:
    problem = small_problem(small_federation(SIZES))
    strategy = compose(name, aggregator=rule("krum", {"f": 1}))  # needs 5 of the 6
    played = play(problem, spoil(strategy, few_samples), 2)
    assert played.state.round == 2
    assert played.params is not None
    assert torch.equal(played.params, problem.initial["params"])
    for step in played.steps:
        assert [r.client for r in step.replies.rejected] == [2, 5]
        assert "krum with f = 1 needs n >= 2f + 3 = 5 clients per exchange, 4 were given" in step.info["kept_model"]
    # the same clients are enough for the mean
    went_on = play(problem, spoil(compose(name), few_samples), 1)
    assert went_on.params is not None
    assert not torch.equal(went_on.params, problem.initial["params"])


@pytest.mark.parametrize("executor", [Serial, Stacked])
@pytest.mark.parametrize("scope", ["mean", "rows"])
@pytest.mark.parametrize("name", AVERAGING)
def test_a_rejected_client_counts_as_absent(name: str, scope: str, executor: Any) -> None:
    data = small_federation(SIZES)
    parts: dict[str, Any] = {} if scope == "mean" else {"aggregator": rule("trimmed_mean", {"f": 1})}
    strategy = compose(name, **parts)
    played = play(small_problem(data), spoil(strategy, few_samples), 1, executor=executor())
    assert played.steps[0].replies.clients.tolist() == [0, 1, 3, 4]
    if "clients" in played.memory.snapshot() and played.memory.first:
        assert played.memory.snapshot()["clients"].tolist() == [0, 1, 3, 4]

    shards = data.splits["train"]
    parts_of = [torch.arange(int(shards.offsets[c]), int(shards.offsets[c + 1])) for c in (0, 1, 3, 4)]
    at = torch.cat(parts_of)
    offsets = torch.tensor([0, 7, 19, 28, 39])
    rest = data._replace(
        splits={"train": Shards(shards.x, shards.index[at], shards.y[at], offsets)},
        client_names=data.client_names[:4],
    )
    wanted = play(small_problem(rest), strategy, 1)
    assert played.params is not None
    assert wanted.params is not None
    torch.testing.assert_close(played.params, wanted.params, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class counting(fedavg):
    """Clients count the exchanges they took part in, and keep a second number that no program ever changes."""

    def programs(self, problem: Problem) -> Programs:
        def finish(client: Client, carry: Any, uplink: Uplink) -> Uplink:
            seen = client.memory["seen"] + 1
            return uplink._replace(memory={"seen": seen}, metrics={**uplink.metrics, "mark": client.memory["mark"]})

        train = training(problem, self.optimizer, finish=finish)
        memory = {"seen": torch.zeros((), dtype=torch.int64), "mark": torch.full((2,), 7.0)}
        return Programs({**super().programs(problem).work, "train": train}, memory)


@pytest.mark.parametrize("executor", [Serial, Stacked])
def test_a_memory_key_that_a_program_leaves_alone_keeps_its_first_value(executor: Any) -> None:
    problem = small_problem(small_federation(SIZES))
    played = play(problem, compose(counting, participation=selection(count=2)), 5, executor=executor())
    everybody = played.memory.of(torch.arange(6))
    took_part = torch.cat([step.replies.clients for step in played.steps])
    assert everybody["seen"].tolist() == torch.bincount(took_part, minlength=6).tolist()
    assert (everybody["mark"] == 7.0).all()
    assert all((step.replies.metrics["mark"] == 7.0).all() for step in played.steps)


@pytest.mark.parametrize("executor", [Serial, Stacked])
@pytest.mark.parametrize("krum", [False, True])
def test_the_control_variate_of_scaffold_is_the_mean_of_the_clients(krum: bool, executor: Any) -> None:
    """Whoever is rejected, and also in rounds in which the rule has too few answers for a step."""
    problem = small_problem(small_federation(SIZES))
    parts: dict[str, Any] = {"aggregator": rule("krum", {"f": 1})} if krum else {"participation": selection(count=3)}
    strategy = compose("scaffold", batches=Batches(size=4), **parts)
    played = play(problem, spoil(strategy, few_samples), 3, executor=executor())
    assert all(("kept_model" in step.info) == krum for step in played.steps)
    controls = played.memory.of(torch.arange(6))["control"]
    assert float(controls.norm()) > 0.1
    torch.testing.assert_close(played.state.own["control"], controls.sum(dim=0) / 6, rtol=0, atol=1e-14)


class Normed(nn.Module):
    """Has parameters, floating buffers and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(torch.tanh(self.norm(self.inner(x))))
        return y


def problem_for(name: str, **given: Any) -> Problem:
    data = small_federation(SIZES)
    return small_problem(pool(data) if name in POOLED else data, **given)


@pytest.mark.parametrize("name", STEPPING)
def test_buffers_travel_beside_the_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    problem = problem_for(name, module=Normed().double())
    strategy = compose(name, batches=Batches(size=None, epochs=2))
    executor = Stacked()
    stacked, serial = (play(problem, strategy, 2, executor=e) for e in (executor, Serial()))
    assert "'norm' is a BatchNorm1d: its batch statistics" in executor.refused["train"]
    assert "runs one client at a time" in caplog.text
    for a, b in zip(_leaves(stacked), _leaves(serial), strict=True):
        assert torch.equal(a, b)
    assert torch.isfinite(serial.losses()).all()
    first = problem.initial["buffers"]
    if serial.params is not None:
        published = strategy.model(problem, serial.state)
        assert published is not None
        buffers = published["buffers"]
    else:
        buffers = serial.memory.of(torch.arange(problem.clients))["model.buffers"]
    assert torch.isfinite(buffers).all()
    assert (buffers != first).all(), "the running statistics did not move"


def _leaves(played: Played) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves((played.state, played.memory.snapshot()))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_buffers_are_averaged_like_the_model(weighting: str) -> None:
    problem = problem_for("fedavg", module=Normed().double())
    played = play(problem, compose("fedavg", weighting=weighting), 1)
    weights = [1.0] * 6 if weighting == "uniform" else list(SIZES)
    shards = problem.data.splits["train"]
    module = problem.network.training
    assert isinstance(module, Normed)
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for client, weight in enumerate(weights):
        own = slice(int(shards.offsets[client]), int(shards.offsets[client + 1]))
        inner = module.inner(shards.x[shards.index[own]])
        # BatchNorm: momentum 0.1 from mean 0 and variance 1, with the unbiased variance
        mean += weight / sum(weights) * 0.1 * inner.mean(dim=0)
        variance += weight / sum(weights) * (0.9 + 0.1 * inner.var(dim=0, correction=1))
    torch.testing.assert_close(played.state.model["buffers"], torch.cat([mean, variance]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", [Serial, Stacked])
@pytest.mark.parametrize("name", STEPPING)
def test_training_the_head_alone_is_training_on_fixed_features(name: str, executor: Any) -> None:
    data = small_federation(SIZES)
    data = pool(data) if name in POOLED else data
    body, head = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    whole = small_problem(data, nn.Sequential(body, nn.Tanh(), head), trainable="2.*")
    assert whole.d == 4 * 3 + 3
    shards = data.splits["train"]
    with torch.no_grad():
        features = torch.tanh(body(shards.x))
        server = {n: split._replace(x=torch.tanh(body(split.x))) for n, split in data.server.items()}
    alone = small_problem(data._replace(splits={"train": shards._replace(x=features)}, server=server), head)
    strategy = compose(name, batches=Batches(size=4))
    got, wanted = play(whole, strategy, 2, executor=executor()), play(alone, strategy, 2)
    if wanted.params is not None and got.params is not None:
        torch.testing.assert_close(got.params, wanted.params, rtol=0, atol=1e-10)
    torch.testing.assert_close(got.losses(), wanted.losses(), rtol=0, atol=1e-10)
    assert torch.equal(whole.network.fixed["0.weight"], body.weight), "a frozen tensor moved"


class Scheduled(NamedTuple):
    """A strategy as a function of a number that may follow a schedule; both values make a difference."""

    name: str
    of: Callable[[Any], dict[str, Any]]
    values: tuple[float, float]


SCHEDULED = {
    "mu": Scheduled("fedprox", lambda v: {"mu": v}, (0.5, 2.0)),
    "lam": Scheduled("ditto", lambda v: {"lam": v}, (0.5, 2.0)),
    **{
        f"lr of {name}": Scheduled(name, lambda v: {"optimizer": sgd(v)}, (0.1, 0.3))
        for name in NAMES
        if "optimizer" in registry.wants(name)
    },
    **{
        f"server lr of {name}": Scheduled(name, lambda v: {"server": sgd(v)}, (0.1, 0.3))
        for name in STEPPING
        if "server" in registry.wants(name)
    },
    "momentum of fednova": Scheduled("fednova", lambda v: {"optimizer": sgd(0.1, momentum=v)}, (0.3, 0.9)),
    "server beta1": Scheduled("fedavg", lambda v: {"server": adam(0.1, beta1=v)}, (0.3, 0.9)),
}


@pytest.mark.parametrize("what", SCHEDULED)
def test_schedules_take_effect_in_their_round(what: str) -> None:
    name, of, (before, after) = SCHEDULED[what]
    problem = problem_for(name)
    rounds, change, count = 4, 2, min(2, problem.clients)

    def strategy(value: Any) -> Strategy:
        # two local steps: in the first one there is no distance yet for a pull
        return compose(name, batches=Batches(size=None, epochs=2), participation=selection(count=count), **of(value))

    def switched(round: int) -> float:
        return before if round < change else after

    schedule = Schedule("steps", (("values", [before, after]), ("at", [change])))
    got = play(problem, strategy(schedule), rounds)
    # the same by hand: another strategy takes over the state
    key = keys.root(1)
    memory = ClientMemory(strategy(before).programs(problem).memory, problem.clients)
    state = strategy(before).init(problem, keys.fold(key, "init"))
    number = 0
    while state.round < rounds:
        now = strategy(switched(state.round))
        state = next(exchanges(problem, now, Serial(), Adversary(), memory, state, key, number)).state
        number += 1
    wanted = Played(problem, strategy(before), state, memory, [])
    for a, b in zip(_leaves(got), _leaves(wanted), strict=True):
        assert torch.equal(a, b)
    for constant in (before, after):
        other = play(problem, strategy(constant), rounds)
        assert not torch.allclose(other.losses(), got.losses(), rtol=1e-6), "the number makes no difference"


@pytest.mark.parametrize("name", ["centralised", "fedavg", "local_only"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "yogi"])
def test_kept_optimizers_survive_a_checkpoint(name: str, optimizer: str, tmp_path: Any) -> None:
    options = {"lr": 0.05, "momentum": 0.9} if optimizer == "sgd" else {"lr": 0.05}
    problem = problem_for(name)
    parts: dict[str, Any] = {"participation": selection(count=3), "batches": Batches(size=4), "optimizer_state": "kept"}
    strategy = compose(name, optimizer=optimizers.build(optimizer, options), **parts)
    half, whole = play(problem, strategy, 2), play(problem, strategy, 4)
    stored = Checkpoint(2, half.state, half.memory.snapshot(), {})
    loaded = load_checkpoint(save_checkpoint(tmp_path, stored))
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    memory.restore(loaded.memory)
    state = loaded.state
    loop = exchanges(problem, strategy, Serial(), Adversary(), memory, state, keys.root(1), 2)
    for _ in range(2):
        state = next(loop).state
    rest = Played(problem, strategy, state, memory, [])
    for a, b in zip(_leaves(rest), _leaves(whole), strict=True):
        assert torch.equal(a, b)
    reset = compose(name, optimizer=optimizers.build(optimizer, options), **{**parts, "optimizer_state": "reset"})
    assert not torch.equal(play(problem, reset, 4).losses(), whole.losses()), "keeping the state makes no difference"
