"""A Flower strategy in fedopt's loop, with what it remembers in the loop's state."""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging, FedXgbCyclic
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import hyper_parameters
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.programs import HYPER, evaluation, training
from fedopt.registry import ConfigError
from fedopt.strategies import _server
from fedopt.types import (
    Batches,
    Exchange,
    FedoptError,
    Info,
    Named,
    Optimizer,
    Participation,
    Programs,
    Replies,
)
from fedopt.wire.flower.vectors import Layout


class Stock(NamedTuple):
    """State of a Flower strategy in fedopt's loop."""

    round: int
    model: Named
    flower: Any
    """The strategy's own attributes."""
    participation: Any


class Ndarrays(NamedTuple):
    """An ArrayRecord among the attributes of a Flower strategy."""

    arrays: Named


class Inside(NamedTuple):
    """A Flower strategy among the attributes of another."""

    attributes: dict[str, Any]


class Number(NamedTuple):
    """A NumPy scalar among the attributes of a Flower strategy, as a tensor without dimensions."""

    value: Tensor


def stock(
    flower: Any,
    *,
    optimizer: Optimizer,
    participation: Participation | None = None,
    batches: Batches = Batches(size=32),
    optimizer_state: Literal["reset", "kept"] = "reset",
) -> Hosted:
    """A Flower strategy as a strategy of fedopt's loop, for `fedopt.Experiment(strategy=stock(...))`.

    Clients train as in `fedavg` and their models are handed to `flower.aggregate_train`, with the number of samples
    under its `weighted_by_key` and the client's own numbers (`loss`, `steps`) beside it; what it returns is the next
    model, in the run's dtype. Who takes part is fedopt's choice, so its options of sampling play no part.

    Its attributes are in the state, so checkpoints hold its momenta and a resumed run has the bits of one that never
    stopped. What it draws from `random` and `numpy.random` follows from the run's key.

    Raises ConfigError for a strategy that keeps what no checkpoint holds, that tells clients more than the model
    (`FedProx`; fedopt has `fedprox`), or that is not about vectors (trees).
    """
    if isinstance(flower, FedXgbBagging | FedXgbCyclic):
        raise ConfigError("strategy", f"{type(flower).__name__} grows trees, and fedopt's clients train a vector")
    _attributes(flower)
    return Hosted(flower, participation or selection(), optimizer, batches, optimizer_state)


@dataclass(frozen=True)
class Hosted:
    """See `stock`."""

    flower: Any
    participation: Participation
    optimizer: Optimizer
    batches: Batches = Batches(size=32)
    optimizer_state: Literal["reset", "kept"] = "reset"

    def programs(self, problem: Problem) -> Programs:
        keep = self.optimizer_state == "kept"
        train = training(problem, self.optimizer, keep_state=keep)
        work = {"train": train, "evaluate": evaluation(problem)}
        return Programs(work, _server.memory(self.optimizer, problem, keep))

    def init(self, problem: Problem, key: Tensor) -> Stock:
        return Stock(0, dict(problem.initial), _attributes(self.flower), self.participation.init(problem))

    def plan(self, problem: Problem, state: Stock, key: Tensor) -> Exchange:
        chooser, pool = self.participation, problem.pool
        ask = chooser.ask(state.participation, pool.numel())
        clients = chooser.choose(state.participation, ask.number, pool, keys.fold(key, "participation"))
        numbers = hyper_parameters(self.optimizer, state.round, problem.dtype)
        batches = self.batches if ask.epochs is None else self.batches._replace(epochs=ask.epochs)
        return Exchange(
            "train", clients, {**state.model, **{HYPER + n: v for n, v in numbers.items()}}, batches=batches
        )

    def absorb(self, problem: Problem, state: Stock, replies: Replies, key: Tensor) -> tuple[Stock, Info]:
        chooser, said = _server.observed(self.participation, problem, state.participation, state.model, replies, key)
        after = state._replace(round=state.round + 1, participation=chooser)
        if not bool(replies.weights.sum() > 0):
            return after, {**said, "kept_model": "no answer with a weight was accepted"}
        spec, buffers = problem.network.spec, problem.network.buffer_spec
        dtype = np.dtype(str(problem.dtype).removeprefix("torch."))
        shapes = {
            **dict(zip(spec.names, spec.shapes, strict=True)),
            **dict(zip(buffers.names, buffers.shapes, strict=True)),
        }
        layout = Layout({name: (shape, dtype) for name, shape in shapes.items()}, spec, buffers)
        flower = _restored(self.flower, state.flower)
        with _a_task(), _drawn(keys.fold(key, "flower")):
            _configured(flower, after.round, layout.arrays(state.model, {}), replies.exchange.clients.numel())
            answers = _answers(flower, layout, state.model, replies)
            found, _ = flower.aggregate_train(after.round, answers)
        after = after._replace(flower=_attributes(flower))
        if found is None:
            return after, {**said, "kept_model": f"{type(flower).__name__} gave no arrays"}
        arrays = {name: array.numpy() for name, array in found.items()}
        if {name: value.shape for name, value in arrays.items()} != shapes:
            raise FedoptError(f"{type(flower).__name__} gave arrays of other names or shapes than those of the model")
        model = layout.vectors(arrays)
        return after._replace(model=model), {
            **said,
            "delta_norm": float((model["params"] - state.model["params"]).norm()),
        }

    def model(self, problem: Problem, state: Stock) -> Named:
        return state.model


def _configured(flower: Any, server_round: int, arrays: Any, cohort: int) -> None:
    """Let a strategy see the round's model. Raises ConfigError where it says more than that to clients."""
    # it waits for so many nodes, and whom it chooses is not looked at
    nodes = max(cohort, _option(flower, "min_available_nodes", 0), _option(flower, "min_train_nodes", 0))
    config = ConfigRecord()
    grid = SimpleNamespace(get_node_ids=lambda: range(nodes))
    messages = list(flower.configure_train(server_round, arrays, config, grid))
    name = type(flower).__name__
    if not messages:
        raise ConfigError("strategy", f"{name} asks nobody to train; give it another fraction_train")
    told = {*config, *(word for one in messages for record in one.content.config_records.values() for word in record)}
    if more := sorted(told - {"server-round"}):
        raise ConfigError(
            "strategy",
            f"{name} tells clients '{more[0]}', and fedopt's local training does not follow it; take a strategy whose"
            " clients only train, or fedopt's own (fedprox)",
        )


def _answers(flower: Any, layout: Layout, model: Named, replies: Replies) -> list[Any]:
    """The clients' answers as Flower's nodes would give them."""
    weighted = _option(flower, "weighted_by_key", "num-examples")
    name = _option(flower, "arrayrecord_key", "arrays")
    messages = []
    for row, client in enumerate(replies.clients.tolist()):
        vectors = {part: rows[row] for part, rows in replies.vectors.items()}
        vectors["params"] = model["params"] + vectors.pop("delta")
        numbers = {word: value[row].item() for word, value in replies.metrics.items() if value.dim() == 1}
        metrics = MetricRecord({**numbers, weighted: replies.weights[row].item()})
        content = RecordDict({name: layout.arrays(vectors, {}), "metrics": metrics})
        metadata = Metadata(0, str(row), client, 0, str(row), "", 0.0, 1.0, MessageType.TRAIN)
        messages.append(Message(content, metadata=metadata))
    return messages


def _option(flower: Any, name: str, otherwise: Any) -> Any:
    """An option of a strategy, or of the one that it is put around."""
    while not hasattr(flower, name) and isinstance(getattr(flower, "strategy", None), FlowerStrategy):
        flower = flower.strategy
    return getattr(flower, name, otherwise)


@contextlib.contextmanager
def _a_task() -> Iterator[None]:
    """Flower's messages are made by a task of a run; where there is none, by number 0."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name, value in before.items():
        setattr(TaskIdentity, name, 0 if value is None else value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


@contextlib.contextmanager
def _drawn(key: Tensor) -> Iterator[None]:
    """What Python and NumPy draw in here follows from a key; afterwards they go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(keys.to_seed(key))
    np.random.seed(keys.to_seed(key) % (1 << 32))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _attributes(flower: Any) -> dict[str, Any]:
    """What a strategy knows, as values that a checkpoint holds; functions are its code. Raises ConfigError."""
    return {
        name: Inside(_attributes(value))
        if isinstance(value, FlowerStrategy)
        else _value(value, f"{type(flower).__name__}.{name}")
        for name, value in vars(flower).items()
        if not (inspect.isroutine(value) or isinstance(value, type))
    }


def _value(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):  # before float, which some are: they promote otherwise
        return Number(torch.from_numpy(np.array(value)))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, ArrayRecord):
        return Ndarrays({name: _value(array.numpy(), f"{where}.{name}") for name, array in value.items()})
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {key: _value(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_value(item, where) for item in value)
    raise ConfigError(
        "strategy",
        f"{where} is of {type(value).__name__}, which no checkpoint holds, so a resumed run would be another one; give"
        " a strategy of numbers, arrays and functions",
    )


def _restored(flower: Any, attributes: Mapping[str, Any]) -> Any:
    """A strategy that knows what another one did; the one given is left as it was."""
    made = copy.copy(flower)
    for name, value in attributes.items():
        inside = isinstance(value, Inside)
        setattr(made, name, _restored(getattr(flower, name), value.attributes) if inside else _given(value))
    return made


def _given(value: Any) -> Any:
    if isinstance(value, Number):
        return value.value.numpy()[()]
    if isinstance(value, Ndarrays):
        return ArrayRecord({name: Array(array.numpy()) for name, array in value.arrays.items()})
    if isinstance(value, Tensor):
        return value.numpy().copy()
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_given(item) for item in value)
    return value
