"""Laws of strategies, and a small federation to play one in."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedopt import keys, models
from fedopt.aggregators import lift
from fedopt.aggregators.mean import mean
from fedopt.data import Federation, Shards, Split, pool
from fedopt.engine.adversary import Adversary
from fedopt.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedopt.engine.loop import Executor, Step, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.optimizers.sgd import sgd
from fedopt.participation import selection
from fedopt.problem import LOSSES, Network, Problem
from fedopt.registry import Component, facts, parameters, validate
from fedopt.strategies import PARTS, registry
from fedopt.testing._laws import close, copied, found, require, run, same, untouched
from fedopt.types import Batches, Client, ClientProgram, Exchange, Programs, Replies, State, Strategy, Uplink

_LR = 0.2
_FEW = (5, 3, 6)
"""Samples of the clients where three of them are enough."""


def horizontal() -> list[str]:
    """Strategies whose clients hold samples."""
    return [name for name in registry.names() if not facts(registry.get(name)).get("vertical")]


def vertical() -> list[str]:
    """Strategies whose clients are parties with columns of the same people."""
    return [name for name in registry.names() if facts(registry.get(name)).get("vertical")]


def check_strategy(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of a strategy, with these options and the plainest parts (see `compose`), in float64.

    memory        programs return only declared memory keys, of the declared shape and dtype
    form          plan names a program that there is and sends tensors; there is an `evaluate` program; the state is a
                  NamedTuple with a round that ends where it should; info is a dict
    purity        plan and absorb change neither the state nor the replies
    determinism   the same key gives the same bits
    one client    one client with its whole data in one step per round goes the way of gradient descent
    identical     clients that hold the same data go the way of one of them
    relabelling   clients in another order give the same model, and everybody the same model of his own
    nobody        where no answer is accepted, the model keeps its bits, the round advances, and info says so
    checkpoint    the state comes back from disk bit by bit, and the next exchanges from it are the same
    stacking      the stacked executor goes the way of the serial one

    Models are compared where there is a common one, and by the clients' own evaluation in any case.

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    run(
        component,
        {
            "memory": lambda: _memory(component, options),
            "form": lambda: _form(component, options),
            "purity": lambda: _purity(component, options),
            "determinism": lambda: _determinism(component, options),
            "one client": lambda: _one_client(component, options),
            "identical": lambda: _identical(component, options),
            "relabelling": lambda: _relabelling(component, options),
            "nobody": lambda: _nobody(component, options),
            "checkpoint": lambda: _checkpoint(component, options),
            "stacking": lambda: _stacking(component, options),
        },
        options,
    )


def small_federation(
    sizes: Sequence[int] = (7, 12, 5, 9, 11, 4),
    *,
    inputs: tuple[int, ...] = (5,),
    classes: int = 3,
    vocabulary: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Federation:
    """Clients with so many samples each, every one with a skew of its own; the server holds `test` and `trial`.

    inputs: shape of one sample. vocabulary: samples are token ids below it, in place of normal numbers.
    """
    key = keys.fold(keys.root(seed), "federation")

    def samples(owner: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        s = owner.numel()
        if vocabulary is not None:
            x = 1 + (keys.uniform(keys.fold(key, "x"), s, *inputs) * (vocabulary - 1)).to(torch.int64)
            return x, (x.sum(dim=tuple(range(1, x.dim()))) + owner) % classes
        shift = 0.3 * keys.normal(keys.fold(key, "shift"), int(owner.max()) + 1, *inputs, dtype=dtype)
        x = keys.normal(keys.fold(key, "x"), s, *inputs, dtype=dtype) + shift[owner]
        truth = keys.normal(keys.fold(key, "truth"), x[0].numel(), classes, dtype=dtype)
        return x, ((x.flatten(1) @ truth).argmax(dim=1) + owner) % classes

    held = torch.tensor(sizes)
    owner = torch.repeat_interleave(torch.arange(held.numel()), held)
    x, y = samples(owner, keys.fold(key, "train"))
    index = keys.permutation(keys.fold(key, "index"), owner.numel())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), held.cumsum(0)])
    # features lie in another order than the clients hold them
    features = torch.empty_like(x)
    features[index] = x
    train = Shards(features, index, y, offsets)
    server = {name: Split(*samples(torch.arange(8) % 2, keys.fold(key, name))) for name in ("test", "trial")}
    names = tuple(f"client {i}" for i in range(held.numel()))
    return Federation({"train": train}, server, tuple(map(str, range(classes))), names, vocabulary=vocabulary)


def small_problem(
    federation: Federation, module: nn.Module | None = None, *, loss: str = "cross_entropy", trainable: str = "*"
) -> Problem:
    """A federation with a network, by default logistic regression in the dtype of its features."""
    if module is None:
        module = models.build(
            "logistic",
            {},
            inputs=federation.inputs,
            classes=federation.classes,
            vocabulary=None,
            key=keys.root(0),
            dtype=federation.splits["train"].x.dtype,
        )
    network, initial = Network.of(module, (trainable,))
    return Problem(network, federation, LOSSES[loss], initial)


def compose(component: Component | str, /, *, lr: float = _LR, **given: Any) -> Strategy:
    """The strategy with these parts and options; a part that is not given is of the plainest kind.

    Options that are not given are those of its first example, where it declares any.

    Everybody takes part, the mean, sgd with `lr` at the clients (at the server, where clients have no optimizer), and
    the whole data as one batch.
    """
    component = found(registry, component)
    wanted = parameters(component)
    plain = {
        "participation": selection(),
        "aggregator": lift(mean, {}),
        "optimizer": sgd(lr),
        "server": sgd(1.0 if "optimizer" in wanted else lr),
        "batches": Batches(size=None),
    }
    parts = {name: given.get(name, part) for name, part in plain.items() if name in wanted}
    example = facts(component).get("examples", ({},))[0]
    options = {**example, **{name: value for name, value in given.items() if name not in plain}}
    strategy: Strategy = component(**parts, **validate(component, options, "strategy", PARTS))
    return strategy


class Played(NamedTuple):
    """A federation after some rounds."""

    problem: Problem
    strategy: Strategy
    state: State
    memory: ClientMemory
    steps: list[Step]

    @property
    def params(self) -> Tensor | None:
        """The common model `[d]`, if there is one."""
        model = self.strategy.model(self.problem, self.state)
        return None if model is None else model["params"]

    def losses(self) -> Tensor:
        """Every client's own evaluation on the data it trains on `[N]`."""
        return _evaluated(self.problem, self.strategy, self.state, self.memory).metrics["loss"]


def play(
    problem: Problem,
    strategy: Strategy,
    rounds: int,
    *,
    executor: Executor | None = None,
    adversary: Adversary = Adversary(),  # noqa: B008 - a NamedTuple
    seed: int = 1,
) -> Played:
    """Run so many rounds in memory, without a folder."""
    key = keys.root(seed)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    return _go_on(problem, strategy, state, memory, rounds, key, executor or Serial(), adversary)


def _go_on(
    problem: Problem,
    strategy: Strategy,
    state: State,
    memory: ClientMemory,
    rounds: int,
    key: Tensor,
    executor: Executor,
    adversary: Adversary,
    first: int = 0,
) -> Played:
    steps: list[Step] = []
    loop = exchanges(problem, strategy, executor, adversary, memory, state, key, first)
    while state.round < rounds:
        steps.append(next(loop))
        state = steps[-1].state
    return Played(problem, strategy, state, memory, steps)


def _evaluated(problem: Problem, strategy: Strategy, state: State, memory: ClientMemory) -> Replies:
    everybody = torch.arange(problem.clients)
    model = dict(strategy.model(problem, state) or {})
    exchange = Exchange("evaluate", everybody, model, batches=Batches(size=4, shuffle=False))
    return Serial().map(problem, strategy.programs(problem), exchange, memory.of(everybody), keys.root(3))


def _problem(component: Component, federation: Federation) -> Problem:
    return small_problem(pool(federation) if facts(component).get("pooled") else federation)


def _local(component: Component, options: dict[str, Any], **parts: Any) -> Strategy:
    return compose(component, **{**parts, **options})


def _form(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    strategy = _local(component, options, batches=Batches(size=4))
    programs = strategy.programs(problem)
    require("evaluate" in programs.work, f"there is no program 'evaluate' among {', '.join(programs.work)}")
    played = play(problem, strategy, 2)
    require(hasattr(played.state, "_fields"), f"the state is a {type(played.state).__name__}, not a NamedTuple")
    require(played.state.round == 2, f"after 2 rounds the state is at round {played.state.round}")
    for step in played.steps:
        exchange = step.replies.exchange
        require(exchange.program in programs.work, f"the planned program '{exchange.program}' does not exist")
        require(exchange.clients.dtype == torch.int64, f"ids are {exchange.clients.dtype} in place of torch.int64")
        require(isinstance(step.info, dict), f"info is a {type(step.info).__name__} in place of a dict")
        for name, value in {**exchange.down, **exchange.own}.items():
            require(isinstance(value, Tensor), f"'{name}' is sent as a {type(value).__name__}, not as a tensor")
    if played.params is not None:
        require(played.params.shape == (problem.d,), f"the model has the shape {list(played.params.shape)}")
        require(bool(torch.isfinite(played.params).all()), "the model is not finite")


def _purity(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    strategy = _local(component, options, batches=Batches(size=4))
    programs = strategy.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    state = strategy.init(problem, keys.root(0))
    for number in range(3):
        key = keys.fold(keys.root(1), number)
        exchange = untouched(lambda key=key, state=state: strategy.plan(problem, state, key), (state, problem.initial))  # type: ignore[misc]
        replies = Serial().map(problem, programs, exchange, memory.of(exchange.clients), key)
        watched = (state, tuple(replies), problem.initial)
        state, _ = untouched(
            lambda state=state, replies=replies, key=key: strategy.absorb(problem, state, replies, key),  # type: ignore[misc]
            watched,
        )
        memory.commit(replies)


def _determinism(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    once, twice = (play(problem, _local(component, options, batches=Batches(size=4)), 2) for _ in range(2))
    same((once.state, once.memory.snapshot()), (twice.state, twice.memory.snapshot()), "two equal runs")


def _memory(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    strategy = _local(component, options, batches=Batches(size=4))
    programs = strategy.programs(problem)
    memory = ClientMemory(programs.memory, problem.clients)
    state = strategy.init(problem, keys.root(0))
    for number in range(2):
        key = keys.fold(keys.root(1), number)
        exchange = strategy.plan(problem, state, key)
        replies = Serial().map(problem, programs, exchange, memory.of(exchange.clients), key)
        _declared(replies, programs)
        state, _ = strategy.absorb(problem, state, replies, key)
        memory.commit(replies)
    _declared(_evaluated(problem, strategy, state, memory), programs)


def _declared(replies: Replies, programs: Programs) -> None:
    name, n = replies.exchange.program, replies.clients.numel()
    for key, rows in replies.memory.items():
        require(key in programs.memory, f"'{name}' returns the memory '{key}', which is not declared")
        first = programs.memory[key]
        wanted = (n, *first.shape)
        require(
            tuple(rows.shape) == wanted and rows.dtype == first.dtype,
            f"'{name}' returns the memory '{key}' as {rows.dtype} {list(rows.shape)}; it is declared as"
            f" {first.dtype} {list(wanted)}",
        )


def _descent(problem: Problem, lr: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Gradient descent on all data of the first client: the model `[d]` and its loss."""
    shards = problem.data.splits["train"]
    module = copy.deepcopy(problem.network.training)
    params = [p.requires_grad_() for p in module.parameters()]
    optimizer = torch.optim.SGD(params, lr)
    loss = torch.zeros(())
    for round in range(rounds + 1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(shards.x[shards.index]), shards.y)
        if round < rounds:
            loss.backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in params]), loss.detach()


def _one_client(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation((9,)))
    for rounds in (1, 3):
        wanted, loss = _descent(problem, _LR, rounds)
        played = play(problem, _local(component, options), rounds)
        if played.params is not None:
            close(played.params, wanted, 1.0, f"the model after {rounds} full-batch steps of one client")
        close(played.losses(), loss[None], 1.0, f"the client's loss after {rounds} full-batch steps")


def _identical(component: Component, options: dict[str, Any]) -> None:
    one = small_federation((9,))
    shards = one.splits["train"]
    many = one._replace(
        splits={"train": Shards(shards.x, shards.index.repeat(4), shards.y.repeat(4), 9 * torch.arange(5))},
        client_names=tuple(f"client {i}" for i in range(4)),
    )
    alone, together = (
        play(_problem(component, data), _local(component, options, batches=Batches(size=None, epochs=2)), 3)
        for data in (one, many)
    )
    _alike(together, alone, alone.losses().expand_as(together.losses()), "four clients with the data of one")


def _relabelling(component: Component, options: dict[str, Any]) -> None:
    data = small_federation()
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    shards = data.splits["train"]
    pieces = [torch.arange(int(shards.offsets[c]), int(shards.offsets[c + 1])) for c in order.tolist()]
    at = torch.cat(pieces)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), shards.sizes[order].cumsum(0)])
    moved = data._replace(splits={"train": Shards(shards.x, shards.index[at], shards.y[at], offsets)})
    here, there = (
        play(_problem(component, d), _local(component, options, batches=Batches(size=None, epochs=2)), 3)
        for d in (data, moved)
    )
    wanted = here.losses()
    _alike(there, here, wanted[order] if wanted.numel() == order.numel() else wanted, "the clients in another order")


def _alike(got: Played, wanted: Played, losses: Tensor, message: str) -> None:
    if got.params is not None and wanted.params is not None:
        close(got.params, wanted.params, 10.0, f"{message}: the model")
    close(got.losses(), losses, 10.0, f"{message}: the clients' losses")


def spoiled(programs: Programs, bad: Callable[[Client], Tensor]) -> Programs:
    """The programs, with a weight of NaN in the answers of clients for whom `bad` is true; those are rejected."""

    def spoil(program: ClientProgram) -> ClientProgram:
        def finish(client: Client, carry: Any) -> Uplink:
            uplink = program.finish(client, carry)
            return uplink._replace(weight=torch.where(bad(client), torch.nan, uplink.weight))

        return program._replace(finish=finish)

    return programs._replace(work={name: spoil(program) for name, program in programs.work.items()})


def _nobody(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    strategy = _local(component, options, batches=Batches(size=4))
    played = play(problem, strategy, 1)
    programs = spoiled(strategy.programs(problem), lambda client: client.samples >= 0)
    state, before = played.state, copied(strategy.model(problem, played.state))
    told: list[bool] = []
    for number in range(50):
        if state.round > 1:
            break
        key = keys.fold(keys.root(5), number)
        exchange = strategy.plan(problem, state, key)
        replies = Serial().map(problem, programs, exchange, played.memory.of(exchange.clients), key)
        require(replies.clients.numel() == 0, "every answer was spoiled, and yet some were accepted")
        state, info = strategy.absorb(problem, state, replies, key)
        told.append(bool(info))
    require(state.round == 2, f"the round is {state.round} in place of 2 after a round without answers")
    same(strategy.model(problem, state), before, "the model after a round without answers")
    if before is not None:
        require(any(told), "info says nothing of a round in which the model was kept")


def _checkpoint(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation(_FEW))
    strategy = _local(component, options, batches=Batches(size=4))
    key = keys.root(1)
    half, whole = (play(problem, strategy, rounds, seed=1) for rounds in (2, 4))
    with tempfile.TemporaryDirectory() as folder:
        stored = Checkpoint(len(half.steps), half.state, half.memory.snapshot(), {})
        loaded = load_checkpoint(save_checkpoint(Path(folder), stored))
    same(loaded.state, half.state, "the state from disk")
    require(type(loaded.state) is type(half.state), f"the state came back as a {type(loaded.state).__name__}")
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    memory.restore(loaded.memory)
    rest = _go_on(problem, strategy, loaded.state, memory, 4, key, Serial(), Adversary(), loaded.exchanges)
    wanted = (whole.state, whole.memory.snapshot())
    same((rest.state, rest.memory.snapshot()), wanted, "a run that went on from disk")


def _stacking(component: Component, options: dict[str, Any]) -> None:
    problem = _problem(component, small_federation())
    executor = Stacked()
    strategy = _local(component, options, batches=Batches(size=4))
    stacked, serial = (play(problem, strategy, 3, executor=e) for e in (executor, Serial()))
    require(not executor.refused, f"the stacked executor refused: {executor.refused}")
    _alike(stacked, serial, serial.losses(), "stacked")
