"""The stacked executor goes the way of the serial one, whatever the strategy, the local optimizer and the network.

Every strategy with one network, every optimizer and every network with fedavg; all with all is slow. Ragged clients,
ragged batches, three rounds.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedopt import keys, models, optimizers, strategies
from fedopt.data import pool
from fedopt.engine import cohort, stacked, trace
from fedopt.engine.serial import ClientError, Serial
from fedopt.engine.stacked import Stacked
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.registry import ConfigError, facts
from fedopt.testing.strategies import Played, compose, horizontal, play, small_federation, small_problem
from fedopt.types import Batches, Exchange, Optimizer, Participation
from tests.families import few

SIZES = (7, 5, 9, 4, 6)
ROUNDS = 3
BATCHES = Batches(size=4)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
MAGNIFYING = {"sc_aeg": 30.0, "kl_shampoo": 100.0, "soap": 100.0, "splus": 100.0}
"""Where rounding is magnified: a server that solves a subproblem up to a tolerance, a step more or less of which shows
in float32; and inverses and bases of matrices without full rank."""

STRATEGIES = horizontal()
STEPPING = [name for name in STRATEGIES if not hasattr(strategies.registry.get(name), "proceed")]
"""Those whose clients train; the others ask for gradients."""
SOME = [
    name if name in ("fedavg", "scaffold", "ditto") else pytest.param(name, marks=pytest.mark.slow) for name in STEPPING
]
"""Of them, a few beside the slow tests."""
OPTIMIZERS = optimizers.registry.names()
ROTATING = ("adam_sania", "kl_shampoo", "muadam", "muadam_sania", "shampoo", "soap", "splus")
"""Optimizers with directions, or scales, of their own for parts without a gradient."""
MODELS = [name for name in models.registry.names() if name != "quadratic"]
"""All but the one whose samples are functions; see tests/similarity."""
SMOOTH = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.5, "nesterov": True},
    {"lr": 0.1, "momentum": 0.5, "dampening": 0.2, "weight_decay": 0.01},
]
"""sgd, whose steps are smooth in the gradient; root and quotient of Adam and its kin magnify float32 rounding."""

TINY = {"width": 4, "hidden": 4, "embedding": 3, "dim": 4, "heads": 2, "depth": 1, "layers": 1}
SAMPLES: list[tuple[int, ...]] = [(5,), (1, 6, 6), (1, 12, 12), (2, 20)]


def tiny(name: str, dtype: torch.dtype, pooled: bool = False, **options: Any) -> Problem:
    """A network of the registry, as small as its options allow, with data of a shape that it takes."""
    known = models.registry.options(name)
    given: dict[str, Any] = {option: value for option, value in TINY.items() if option in known}
    if name == "mlp":
        given = {"hidden": [6], "activation": "tanh"}
    vocabulary = 7 if "vocabulary" in models.registry.wants(name) else None
    refusals = []
    for inputs in SAMPLES:
        data = small_federation(SIZES, inputs=inputs, vocabulary=vocabulary, dtype=dtype)
        try:
            module = models.build(
                name,
                {**given, **options},
                inputs=inputs,
                classes=3,
                vocabulary=vocabulary,
                key=keys.root(2),
                dtype=dtype,
            )
        except ConfigError as error:
            refusals.append(str(error))
            continue
        if "last" in known:
            module = models.build(
                name,
                {**given, **options, "last": True},
                inputs=inputs,
                classes=3,
                vocabulary=vocabulary,
                key=keys.root(2),
                dtype=dtype,
            )
        return small_problem(pool(data) if pooled else data, module)
    raise AssertionError(f"no shape of samples suits '{name}': {refusals}")


def optimizer_of(name: str, **given: Any) -> Optimizer:
    known = optimizers.registry.options(name)
    example = facts(optimizers.registry.get(name)).get("examples", ({},))[0]
    fitting = {option: value for option, value in {"lr": 0.05, "groups": 3, **given}.items() if option in known}
    return optimizers.build(name, {**example, **fitting})


def problem_for(strategy: str, model: str, dtype: torch.dtype = torch.float64, **options: Any) -> Problem:
    return tiny(model, dtype, bool(facts(strategies.registry.get(strategy)).get("pooled")), **options)


def three(problem: Problem) -> Participation:
    return selection(count=min(3, problem.clients))


def moved(played: Played) -> list[tuple[str, Tensor]]:
    """What each round changed at the server, and what the clients kept, as one flat vector each."""
    models = [played.problem.initial, *(played.strategy.model(played.problem, s.state) for s in played.steps)]
    found = [
        (f"delta of round {round}", new["params"] - old["params"])
        for round, (old, new) in enumerate(itertools.pairwise(models))
        if old is not None and new is not None
    ]
    everybody = torch.arange(played.problem.clients)
    for name, rows in played.memory.of(everybody).items():
        first = played.memory.first[name].to(rows.dtype)
        found.append((f"memory {name}", (rows - first).flatten().to(played.problem.dtype)))
    for step in played.steps:
        found.append(("losses", step.replies.metrics["loss"]))
    return found


def gaps(one: Played, other: Played) -> list[float]:
    pairs = zip(moved(one), moved(other), strict=True)
    # below the floor lies what is zero but for rounding, such as the moments of a bias that a norm takes out again
    return [float((got - wanted).norm() / wanted.norm().clamp(min=1e-6)) for (_, got), (_, wanted) in pairs]


def agree(
    stacked: Played,
    serial: Played,
    personal: float | None = None,
    looser: float = 1.0,
    shaken: list[float] | None = None,
) -> None:
    """shaken: how far a change of the start by rounding leads by itself; a thousand times that is allowed."""
    pairs = list(zip(moved(stacked), moved(serial), strict=True))
    assert len(pairs) > ROUNDS
    for (name, _), (_, wanted), gap, own in zip(
        *zip(*pairs, strict=True), gaps(stacked, serial), shaken or [0.0] * len(pairs), strict=True
    ):
        allowed = personal if personal is not None and name == "memory personal" else looser * TOLERANCE[wanted.dtype]
        assert gap <= max(allowed, 1e3 * own), f"{name}: relative difference {gap:.2e}"
    assert any(float(wanted.norm()) > 1e-3 for _, (_, wanted) in pairs), "nothing moved"


def same_bits(one: Played, other: Played) -> bool:
    ours, theirs = moved(one), moved(other)
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def both(
    problem: Problem,
    strategy: str,
    personal: float | None = None,
    looser: float = 1.0,
    *,
    shaken: bool = False,
    **given: Any,
) -> None:
    made = compose(strategy, lr=0.1, **{"batches": BATCHES, "participation": three(problem), **given})
    executor = Stacked()
    stacked = play(problem, made, ROUNDS, executor=executor)
    assert not executor.refused
    serial, own = play(problem, made, ROUNDS), None
    if shaken:
        start = problem.initial["params"]
        nudge = 1e-13 * start.abs().mean() * keys.normal(keys.root(5), start.numel(), dtype=start.dtype)
        near = problem._replace(initial={**problem.initial, "params": start + nudge})
        own = gaps(play(near, made, ROUNDS), serial)
    agree(stacked, serial, personal, looser, own)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(strategy: str, dtype: torch.dtype) -> None:
    looser = MAGNIFYING.get(strategy, 1.0) if dtype == torch.float32 else 1.0
    both(problem_for(strategy, "mlp", dtype), strategy, looser=looser)


@pytest.mark.parametrize("strategy", few(STRATEGIES))
def test_every_strategy_with_another_number_of_steps_than_batches(strategy: str) -> None:
    both(problem_for(strategy, "mlp"), strategy, batches=Batches(size=4, steps=3))


@pytest.mark.parametrize("strategy", few(STRATEGIES))
def test_evaluation_on_clients(strategy: str) -> None:
    problem = problem_for(strategy, "mlp")
    made = compose(strategy, batches=BATCHES)
    played = play(problem, made, 1)
    everybody = torch.arange(problem.clients)
    model = dict(made.model(problem, played.state) or {})
    exchange = Exchange("evaluate", everybody, model, batches=Batches(size=4, shuffle=False))
    executor = Stacked()
    stacked, serial = (
        e.map(problem, made.programs(problem), exchange, played.memory.of(everybody), keys.root(0))
        for e in (executor, Serial())
    )
    assert not executor.refused
    torch.testing.assert_close(stacked.metrics, serial.metrics, rtol=1e-12, atol=0)
    torch.testing.assert_close(stacked.weights, problem.data.splits["train"].sizes.double(), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", SOME)
def test_lanes_side_by_side(strategy: str) -> None:
    """Enough rounds that most of them run as graphs, in two threads at once; two runs have the same bits."""
    problem = problem_for(strategy, "mlp")
    made = compose(strategy, lr=0.1, batches=BATCHES, participation=three(problem))
    runs = []
    for _ in range(2):
        executor = Stacked(threads=2)
        runs.append(play(problem, made, 12, executor=executor))
        executor.close()
        assert not executor.refused
    assert same_bits(*runs)
    agree(runs[0], play(problem, made, 12))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str) -> None:
    looser = MAGNIFYING.get(name, 1.0)
    both(tiny("mlp", torch.float64), "fedavg", looser=looser, optimizer=optimizer_of(name))


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("sgd", "adam", "muadam", "soap", "alias", "warmup")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)
def test_every_optimizer_whose_state_stays_with_the_client(name: str) -> None:
    given = {"optimizer": optimizer_of(name), "optimizer_state": "kept"}
    both(tiny("mlp", torch.float64), "fedavg", looser=MAGNIFYING.get(name, 1.0), **given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("options", SMOOTH, ids=str)
def test_every_kind_of_sgd(options: dict[str, Any], dtype: torch.dtype) -> None:
    both(tiny("mlp", dtype), "fedavg", optimizer=optimizers.build("sgd", options))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model(model: str, dtype: torch.dtype) -> None:
    problem = tiny(model, dtype)
    assert models.stackable(problem.network.training) is None
    both(problem, "fedavg", participation=selection(count=2))


@pytest.mark.parametrize("model", [name for name in MODELS if "dropout" in models.registry.options(name)])
def test_keyed_dropout(model: str) -> None:
    pair = models.registry.options(model)["dropout"].default
    dropout = [0.3, 0.5] if isinstance(pair, tuple | list) else 0.3
    with_it, without = tiny(model, torch.float64, dropout=dropout), tiny(model, torch.float64)
    assert with_it.network.dropout
    both(with_it, "fedavg", participation=selection(count=2))
    dropped, whole = (play(p, compose("fedavg", batches=BATCHES), 1) for p in (with_it, without))
    assert not same_bits(dropped, whole), "no unit was dropped"


@pytest.mark.parametrize("strategy", STEPPING)
def test_keyed_dropout_with_every_strategy(strategy: str) -> None:
    data = small_federation(SIZES)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)).double()
    assert models.key_dropout(module) == 1
    pooled = facts(strategies.registry.get(strategy)).get("pooled")
    both(small_problem(pool(data) if pooled else data, module), strategy)


@pytest.mark.parametrize("strategy", SOME)
@pytest.mark.parametrize("width", [1, 2, None])
def test_micro_cohorts(strategy: str, width: int | None) -> None:
    """Any width agrees; the same width gives the same bits, also where it is taken over from an earlier run."""
    problem = problem_for(strategy, "mlp")
    made = compose(strategy, batches=BATCHES)
    runs = []
    for _ in range(2):
        executor = Stacked(memory_mb=1e-9 if width == 1 else 1024.0)
        if width == 2:
            executor.restore({"width": {"train": 2}, "refused": {}})
        runs.append(play(problem, made, ROUNDS, executor=executor))
        assert not executor.refused
        assert executor.width["train"] == width or (width is None and executor.width["train"] >= problem.clients)
    assert same_bits(*runs)
    agree(runs[0], play(problem, made, ROUNDS))


@pytest.mark.parametrize("strategy", few(STRATEGIES))
def test_graphs_give_the_bits_of_the_eager_run(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for(strategy, "mlp")
    made = compose(strategy, lr=0.1, batches=BATCHES)
    monkeypatch.setattr(trace, "PATIENCE", 10**9)
    eager = play(problem, made, 6, executor=Stacked())
    monkeypatch.setattr(trace, "PATIENCE", 1)
    executor = Stacked()
    graphs = play(problem, made, 6, executor=executor)
    assert sum(shape.trusted for shape in executor._traced._known.values()) >= 3
    assert not any(shape.hopeless for shape in executor._traced._known.values())
    assert same_bits(eager, graphs)


def test_bfloat16_products_go_the_same_way_roughly() -> None:
    problem = problem_for("fedavg", "mlp", torch.float32)
    made = compose("fedavg", lr=0.1, batches=BATCHES)
    half, full = (play(problem, made, 8, executor=Stacked(precision=kind)) for kind in ("bf16", "full"))
    ours, theirs = (played.steps[-1].state.model["params"] for played in (half, full))
    assert ours.dtype == torch.float32
    gap = float((ours - theirs).norm() / (theirs - problem.initial["params"]).norm())
    assert 0 < gap < 0.05


def test_a_cohort_in_which_some_are_done_early() -> None:
    """One client takes one step, another six; their neighbours in the cohort change nothing for them."""
    data = small_federation((2, 23, 1, 4, 8))
    problem = small_problem(data)
    made = compose("local_only", lr=0.1, batches=BATCHES)
    executor = Stacked()
    played = play(problem, made, ROUNDS, executor=executor)
    assert not executor.refused
    assert [step.replies.metrics["steps"].tolist() for step in played.steps] == [[1, 6, 1, 1, 2]] * ROUNDS
    agree(played, play(problem, made, ROUNDS))


def test_rejected_clients_are_the_same() -> None:
    data = small_federation(SIZES)
    shards = data.splits["train"]
    x = shards.x.clone()
    x[shards.index[int(shards.offsets[2])]] = torch.nan
    problem = small_problem(data._replace(splits={"train": shards._replace(x=x)}))
    made = compose("fedavg", lr=0.1, batches=BATCHES)
    stacked, serial = (play(problem, made, ROUNDS, executor=executor) for executor in (Stacked(), Serial()))
    for a, b in zip(stacked.steps, serial.steps, strict=True):
        assert a.replies.rejected == b.replies.rejected
        assert [r.client for r in a.replies.rejected] == [2]
    agree(stacked, serial)


def test_the_walks_of_a_micro_cohort_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [400, *[4] * 60]  # padded to the longest walk, all at once would be 61 x 400 places
    problem, strategy, places = small_problem(small_federation(sizes)), compose("fedavg"), []

    def spy(*given: Any) -> Any:
        found = cohort.walk(*given)
        assert found is not None
        places.append(found.positions.numel())
        return found

    whole = play(problem, strategy, 1, executor=Stacked())
    monkeypatch.setattr(stacked, "walk", spy)
    executor = Stacked(memory_mb=0.06)
    executor.width["train"] = 100  # the model alone would let everybody in
    part = play(problem, strategy, 1, executor=executor)
    assert max(places) <= 0.06 * 2**20 / 8 and len(places) > 1
    torch.testing.assert_close(part.params, whole.params, rtol=1e-9, atol=1e-12)


def test_an_exchange_with_nobody() -> None:
    problem, strategy, executor = small_problem(small_federation(SIZES)), compose("fedavg"), Stacked()
    programs, key = strategy.programs(problem), keys.root(0)
    exchange = strategy.plan(problem, strategy.init(problem, key), key)
    nobody = exchange._replace(clients=torch.zeros(0, dtype=torch.int64))
    for run in (executor, Serial()):
        replies = run.map(problem, programs, nobody, {}, key)
        assert replies.clients.numel() == 0
        state, info = strategy.absorb(problem, strategy.init(problem, key), replies, key)
        assert state.round == 1 and info == {"kept_model": "no answer was accepted"}
    assert executor.refused == {}


def test_an_error_in_a_program_is_told_by_the_serial_run() -> None:
    """What does not stack is tried one by one, and a real mistake is named with its client."""

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("out of order")
            y: Tensor = self.linear(x)
            return y

    problem = small_problem(small_federation(SIZES), Wrong().double())
    executor = Stacked()
    with pytest.raises(ClientError, match=r"client 0 \(client 0\) failed in program 'train' at step 0: .*out of order"):
        play(problem, compose("fedavg"), 1, executor=executor)
    assert executor.refused == {}, "a mistake, once mended, must not leave the program serial for ever"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STEPPING)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_everything_with_everything(strategy: str, optimizer: str, model: str) -> None:
    problem = problem_for(strategy, model)
    wants = strategies.registry.wants(strategy)
    part = "optimizer" if "optimizer" in wants else "server"
    # the pull of a coordinate without a gradient is rounding alone; AdaGrad divides it by its eps of 1e-10
    personal = 1e-7 if (strategy, optimizer) == ("ditto", "adagrad") else None
    cohort = selection(count=min(2, problem.clients))
    if (optimizer, model) == ("soap", "resnet18") or (
        optimizer == "splus" and model not in ("logistic", "mlp", "transformer")
    ):
        pytest.skip("signs of rounding: the network has matrices without a gradient, whose eigenvectors are arbitrary")
    # a matrix of gradients that are zero but for rounding has eigenvectors all the same, and steps of unit length
    shaken = optimizer in ROTATING
    both(problem, strategy, personal, shaken=shaken, participation=cohort, **{part: optimizer_of(optimizer)})
