"""fedopt in plain Flower apps, and Flower's strategies in fedopt's loop; Flower's Message API, 1.41.

    strategy(rule={"name": "krum", "f": 1}).start(grid, arrays)      a rule and a server optimizer in a ServerApp
    served(fedavg(...))                                              a whole fedopt strategy there
    mod({"name": "topk", "share": 0.01, "feedback": "ef21"})         a codec in a ClientApp, and
    decoded(FedAdam(), {"name": "topk", ...})                        its other end around any Flower strategy
    stock(FedAdam(), optimizer=sgd(lr=0.1))                          a Flower strategy for `fedopt.Experiment`

What nodes send is read without trust: names, shapes and lengths are those of the arrays that were sent to them before
anything is allocated, and an answer that is none costs its node the round, not the run.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import inspect
import io
import logging
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedXgbBagging, FedXgbCyclic
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from torch import Tensor, nn

from fedopt import aggregators, compression, keys, models, optimizers, strategies
from fedopt.aggregators import pre
from fedopt.compressed import PREFIX, Compressed, bare
from fedopt.compression import feedback
from fedopt.data import Federation, Shards, Split
from fedopt.flat import FlatSpec
from fedopt.optimizers import hyper_parameters
from fedopt.participation import selection
from fedopt.problem import LIKELIHOODS, LOSSES, Network, Problem
from fedopt.programs import HYPER, evaluation, training
from fedopt.registry import ConfigError
from fedopt.strategies import _server
from fedopt.strategies.fedavg import fedavg
from fedopt.types import (
    Batches,
    Client,
    ClientProgram,
    Exchange,
    FedoptError,
    Info,
    Named,
    Optimizer,
    Participation,
    Programs,
    Rejection,
    Replies,
    Strategy,
    Uplink,
    WireError,
)
from fedopt.wire.messages import Awaited, Written, plain, read_up, write_up

log = logging.getLogger("flwr")  # the one that a Flower user reads

RECORD = "fedopt"
"""Of the numbers that `decoded` sends along, and the first part of the names under which `mod` keeps its memory."""

CODE = "fedopt.delta"
"""The array that holds a coded difference, a message of `fedopt.wire.messages`; `CODED` is its serialization type."""

CODED = "fedopt"

HEAVIEST = 1 << 53
"""No node counts for more; in float32, weights above 2^127 would make shares of NaN."""

OTHER_METRICS = "its metrics are not those that most nodes gave"

TRAINING = ("fedavg", "fedprox")
"""Built-in strategies whose clients train locally and answer the difference, as a ClientApp does."""

Arrays = dict[str, NDArray[Any]]


class Held(NamedTuple):
    """What a server holds itself, for rules that try updates out on samples of its own.

    The names of the module's parameters and buffers are those of the app's arrays, as they are with
    `ArrayRecord(module.state_dict())`.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    loss: Literal["cross_entropy", "squares", "logistic"] = "cross_entropy"


class Layout(NamedTuple):
    """How the arrays of a record lie in fedopt's vectors; arrays of no floats stay as they are."""

    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    """Shape and dtype of every array, in order."""
    params: FlatSpec
    buffers: FlatSpec

    def read(self, record: Any) -> Arrays:
        """The arrays of a record from outside. Raises WireError unless they are named and shaped as here."""
        if wrong := sorted(record.keys() ^ self.kinds.keys()):
            raise WireError(f"the arrays {', '.join(self.kinds)} are needed, and '{wrong[0]:.80}' is not in both")
        return {name: _array(name, record[name], *kind) for name, kind in self.kinds.items()}

    def vectors(self, arrays: Arrays) -> Named:
        """`params [d]`, and `buffers [b]` where there are any."""
        specs = {"params": self.params, "buffers": self.buffers}
        return {
            part: spec.flatten({n: torch.from_numpy(arrays[n]).to(spec.dtype) for n in spec.names})
            for part, spec in specs.items()
            if part == "params" or spec.names
        }

    def arrays(self, vectors: Named, others: Arrays) -> Any:
        """An ArrayRecord of vectors and of the arrays that lie in none, each of the dtype that it had."""
        named = {**self.params.unflatten(vectors["params"])}
        if "buffers" in vectors:
            named |= self.buffers.unflatten(vectors["buffers"])
        found = {n: t.to(torch.from_numpy(np.empty(0, self.kinds[n][1])).dtype).numpy() for n, t in named.items()}
        return ArrayRecord({n: Array(np.asarray({**others, **found}[n], order="C")) for n in self.kinds})

    def others(self, arrays: Arrays) -> Arrays:
        """Those that lie in no vector."""
        taken = {*self.params.names, *self.buffers.names}
        return {name: value for name, value in arrays.items() if name not in taken}


def _layout(record: Any, buffers: Sequence[str], held: Held | None = None) -> Layout:
    """Of the arrays of our own side. Raises FedoptError where they cannot be taken for vectors."""
    arrays: Arrays = {name: array.numpy() for name, array in record.items()}
    kinds = {name: (value.shape, value.dtype) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise FedoptError(f"arrays of floats and of whole numbers are needed, '{name}' is of {value.dtype}")
    floats = {name: torch.from_numpy(value) for name, value in arrays.items() if value.dtype.kind == "f"}
    if held is not None:
        apart = {name for name, _ in held.module.named_buffers()}
        if wrong := sorted(floats.keys() - apart - {name for name, _ in held.module.named_parameters()}):
            raise FedoptError(f"trial: the app's array '{wrong[0]}' is none of the module's; give the app's own module")
    else:
        for pattern in buffers:
            if not fnmatch.filter(arrays, pattern):
                raise ConfigError("buffers", f"no array matches '{pattern}'; there are {', '.join(arrays)}")
        apart = {name for name in floats if any(fnmatch.fnmatchcase(name, pattern) for pattern in buffers)}
    params = {name: value for name, value in floats.items() if name not in apart}
    if not params:
        raise FedoptError(f"arrays of floats are needed, {', '.join(arrays) or 'none'} were given")
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in floats.values()) else torch.float32
    rest = {name: value for name, value in floats.items() if name in apart}
    return Layout(kinds, FlatSpec.of(params, dtype), FlatSpec.of(rest, dtype))


def _array(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array from outside. Raises WireError for one of another kind, before anything is made of it."""
    if array.stype != "numpy.ndarray":
        raise WireError(f"the array '{name}' is needed as NumPy writes it, '{array.stype:.80}' was given")
    body = io.BytesIO(array.data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, _, kind = readers[np.lib.format.read_magic(body)](body)
    except Exception as error:  # a header is a Python literal, and what is wrong with one comes as any error
        raise WireError(f"the array '{name}' has no header of NumPy's: {type(error).__name__}") from None
    if (found, kind) != (shape, dtype):
        raise WireError(f"the array '{name}' is needed as {list(shape)} of {dtype}, not as it was given")
    size = dtype.itemsize * math.prod(shape)
    if len(array.data) - body.tell() != size:
        raise WireError(f"{size} bytes are needed for the array '{name}', {len(array.data) - body.tell()} were given")
    value: NDArray[Any] = array.numpy()
    return value


def _only(records: Mapping[str, Any], kind: str) -> tuple[str, Any]:
    """The one record of a kind, with its name. Raises WireError."""
    if len(records) != 1:
        raise WireError(f"one {kind} is needed, {len(records)} were given")
    return next(iter(records.items()))


def _problem(layout: Layout, vectors: Named, clients: int, held: Held | None = None) -> Problem:
    """What a strategy's server half sees: vectors, how many clients there may be, and what the server holds itself."""
    none = torch.zeros(0, dtype=torch.int64)
    nobodys = Shards(torch.zeros(0), none, none, torch.zeros(clients + 1, dtype=torch.int64))
    if held is None:
        network = Network(layout.params, layout.buffers, {}, (), nn.Identity(), nn.Identity())
        return Problem(network, Federation({"train": nobodys}, {}, ()), LOSSES["cross_entropy"], vectors)
    module = copy.deepcopy(held.module).to(layout.params.dtype)
    models.key_dropout(module)
    network, _ = Network.of(module)
    network = network._replace(spec=layout.params, buffer_spec=layout.buffers)
    x = held.x.to(layout.params.dtype) if held.x.is_floating_point() else held.x
    saturation = 0.25 if held.loss in LIKELIHOODS else 0.0  # the default of data.trial_saturation
    data = Federation({"train": nobodys}, {"trial": Split(x, held.y)}, ())
    return Problem(network, data, LOSSES[held.loss], vectors, trial_saturation=saturation)


def _component(value: str | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """A name with its options, from a name or from a table as in a config."""
    if isinstance(value, str):
        return value, {}
    options = dict(value)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name", "the name of a component is needed")
    return name, options


def strategy(
    rule: str | Mapping[str, Any] = "mean",
    *,
    server: str | Mapping[str, Any] | None = None,
    optimizer: str | Mapping[str, Any] | None = None,
    batches: Batches = Batches(size=32),
    weighting: Literal["samples", "uniform"] = "samples",
    clients: int | None = None,
    buffers: Sequence[str] = (),
    trial: Held | None = None,
    seed: int = 0,
    **sampling: Any,
) -> Served:
    """A strategy for a Flower ServerApp: the nodes' models, less what they were sent, go through a rule of fedopt.

        delta_i = arrays_i - arrays,    arrays <- server step along rule(delta_1 ... delta_n)

    rule: name, or a table as `[aggregator]` in a config, with `pre`. server: the same of `strategy.server`; by default
        `sgd` with lr = 1, which adds the delta.
    optimizer: as `[optimizer]`; its numbers of each round are in the nodes' config as `optimizer.lr` and so on, for a
        ClientApp that heeds them. It and `batches` are what the server trains its own update with, for rules that
        compare with one.
    weighting: a node counts by its number of examples (`weighted_by_key`) or every node counts alike.
    clients: how many different nodes may ever answer; for rules that keep something of each.
    buffers: patterns over the names of arrays that are no parameters, as "*running_*": averaged by weight, by no rule.
    trial: what the server holds itself, for rules that try updates out; its module says which arrays are parameters.
    seed: of what a rule draws.
    sampling: options of Flower's `FedAvg`, which chooses the nodes and averages metrics.

    Raises ConfigError for unknown names and options, and for a rule that needs what was not given.
    """
    name, options = _component(rule, "rule")
    steps = [
        pre.build(*_component(step, f"rule.pre.{i}"), f"rule.pre.{i}") for i, step in enumerate(options.pop("pre", ()))
    ]
    built = pre.composed(aggregators.build(name, options, "rule"), steps, "rule")
    step_name, step = _component({"name": "sgd", "lr": 1.0} if server is None else server, "server")
    local = None
    if optimizer is not None:
        local = optimizers.build(*_component(optimizer, "optimizer"))
    elif "reference" in built.needs:
        raise ConfigError(
            "optimizer", f"rule '{built.name}' compares with what the server trains itself; say with which optimizer"
        )
    method = fedavg(
        participation=selection(),
        aggregator=built,
        optimizer=cast(Optimizer, local),  # without one, nobody is told its numbers
        server=optimizers.build(step_name, step, "server"),
        batches=batches,
        weighting=weighting,
    )
    return served(method, clients=clients, buffers=buffers, trial=trial, seed=seed, **sampling)


def served(
    method: Strategy,
    *,
    clients: int | None = None,
    buffers: Sequence[str] = (),
    trial: Held | None = None,
    seed: int = 0,
    **sampling: Any,
) -> Served:
    """The server's half of a fedopt strategy, for a Flower ServerApp; the clients' half is the ClientApp's.

    Covered are methods whose clients train from the model that they are sent and answer the model that they reach:
    `fedavg` with any rule and server optimizer, `fedprox` where the ClientApp adds the term by `mu` of its config, and
    strategies of your own of that kind. The participation draws uniformly, out of the nodes that Flower's options
    choose. Other arguments are those of `strategy`.

    Raises ConfigError for a method whose clients do, keep or send anything else.
    """
    return Served(method, clients, tuple(buffers), trial, seed, sampling)


def _admitted(method: Strategy, clients: int | None, trial: Held | None) -> None:
    """Raises ConfigError for a method that a plain Flower app cannot carry out."""
    name = type(method).__name__
    if bare(method) is not method:
        raise ConfigError(
            "method", "give the strategy itself; compression is `decoded` and `mod`, surveys have no place"
        )
    if name in strategies.registry.builtin() and name not in TRAINING:
        raise ConfigError(
            "method",
            f"the clients of '{name}' do more than to train and to answer a model, and a ClientApp does not know it;"
            f" take {' or '.join(TRAINING)}, or fedopt's own apps, which run every strategy",
        )
    chosen: Participation | None = getattr(method, "participation", None)
    if chosen is not None and (chosen.sampling != "uniform" or chosen.measures or chosen.surveys):
        raise ConfigError(
            "participation.name",
            f"'{chosen.name}' chooses by what clients hold or tell, which a ClientApp does not say; take uniform",
        )
    rule = getattr(method, "aggregator", None)
    if rule is None:
        return
    if {"trial", "reference"} & rule.needs and trial is None:
        raise ConfigError(
            "trial",
            f"rule '{rule.name}' needs labelled samples of the server's own; give trial = Held(module, x, y)",
        )
    if "clients" in rule.needs and clients is None:
        raise ConfigError("clients", f"rule '{rule.name}' keeps something of each node; say how many may ever answer")


class Served(FedAvg):  # type: ignore[misc]  # Flower is not looked into
    """See `served`. `state` is the method's; of the last round, `told` is what it said and `rejected` why by node."""

    def __init__(
        self,
        method: Strategy,
        clients: int | None,
        buffers: tuple[str, ...],
        trial: Held | None,
        seed: int,
        sampling: Mapping[str, Any],
    ) -> None:
        _admitted(method, clients, trial)
        super().__init__(**sampling)
        self.method, self.clients, self.buffers, self.trial = method, clients, buffers, trial
        self.uniform, self.key = getattr(method, "weighting", "samples") == "uniform", keys.root(seed)
        self.state: Any = None
        self.told: Info = {}
        self.rejected: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._problem: Problem | None = None
        self._layout: Layout | None = None
        self._exchange: Exchange | None = None
        self._sent: tuple[Arrays, Named] = {}, {}
        self._published: Any = None

    def summary(self) -> None:
        """Log what this strategy is."""
        rule = getattr(self.method, "aggregator", None)
        log.info("fedopt's %s%s", type(self.method).__name__, "" if rule is None else f" with the rule {rule.name}")
        super().summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """The nodes that Flower's options choose, and of these whom the method asks."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if not messages:
            return messages
        self._follow(server_round, arrays, len(list(grid.get_node_ids())))
        assert self._problem is not None
        numbers = self._numbered([message.metadata.dst_node_id for message in messages])
        there = torch.tensor(sorted(numbers.values()), dtype=torch.int64)
        here = keys.fold(self.key, "round", server_round)
        exchange = self.method.plan(self._problem._replace(there=there), self.state, keys.fold(here, "plan"))
        config.update(_said(exchange))
        if type(self.method).__name__ not in TRAINING:
            _check_answers(self.method, self._problem, exchange)
        self._exchange = exchange
        asked = set(exchange.clients.tolist())
        return [message for message in messages if numbers.get(message.metadata.dst_node_id) in asked]

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The method's step on the differences of those whose answers can be used."""
        if self._exchange is None or self._problem is None or self._layout is None:
            return None, None
        rows, contents, silent = self._read(replies)
        answers = self._replies(rows, silent)
        here = keys.fold(self.key, "round", server_round)
        self.state, self.told = self.method.absorb(self._problem, self.state, answers, keys.fold(here, "absorb"))
        self._exchange = None
        if "kept_model" in self.told:
            log.warning("round %d kept the model: %s", server_round, self.told["kept_model"])
        others = [self._layout.others(rows[client].arrays) for client in sorted(rows)]
        model = self.method.model(self._problem, self.state)
        assert model is not None
        self._published = self._layout.arrays(model, _middle(others) or self._layout.others(self._sent[0]))
        return self._published, self._metrics(contents)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
        """As Flower does, of those whose metrics can be used."""
        good: list[Any] = []
        for message in replies:
            try:
                if message.has_error() or _weight(message.content, self.weighted_by_key) > 0:
                    good.append(message)
            except WireError as error:
                log.warning("the evaluation of node %d is not used: %s", message.metadata.src_node_id, error)
        usual = _usual(message.content for message in good if not message.has_error())
        for message in [one for one in good if not one.has_error() and _shape(one.content) != usual]:
            good.remove(message)
            log.warning("the evaluation of node %d is not used: %s", message.metadata.src_node_id, OTHER_METRICS)
        return super().aggregate_evaluate(server_round, good)

    def _follow(self, server_round: int, arrays: Any, connected: int) -> None:
        """Begin, or see that the model is the one of the last round."""
        if server_round == 1 or self._problem is None:
            self._layout = layout = _layout(arrays, self.buffers, self.trial)
            read = layout.read(arrays)
            clients = max(connected, 1) if self.clients is None else self.clients
            self._problem = _problem(layout, layout.vectors(read), clients, self.trial)
            self._numbers = {}
            if memory := self.method.programs(self._problem).memory:
                raise ConfigError("method", f"its clients keep {', '.join(memory)}, and a ClientApp does not")
            self.state = self.method.init(self._problem, keys.fold(self.key, "init"))
        elif arrays != self._published:
            raise FedoptError(
                "the arrays of a round have to be those that the last one gave: the server's state goes with them"
            )
        assert self._layout is not None
        read = self._layout.read(arrays)
        self._sent, self._published = (read, self._layout.vectors(read)), arrays

    def _numbered(self, nodes: list[int]) -> dict[int, int]:
        """fedopt's numbers of nodes, in the order in which they came; of those for whom there is one."""
        for node in sorted(set(nodes) - self._numbers.keys()):
            if self.clients is not None and len(self._numbers) >= self.clients:
                log.warning("node %d is not asked: clients = %d others were here before; raise it", node, self.clients)
                continue
            self._numbers[node] = len(self._numbers)
        return {node: self._numbers[node] for node in nodes if node in self._numbers}

    def _read(self, replies: Iterable[Any]) -> tuple[dict[int, Answered], list[Any], list[Rejection]]:
        """Usable answers by client, their contents, and who said nothing."""
        assert self._exchange is not None
        nodes = {number: node for node, number in self._numbers.items()}
        asked = {nodes[client]: client for client in self._exchange.clients.tolist()}
        found: dict[int, tuple[Answered, Any]] = {}
        self.rejected, silent = {}, []
        for message in replies:
            node = message.metadata.src_node_id
            client = asked.pop(node, None)
            if client is None:
                log.warning("an answer of node %d, who was not asked or has answered, is not used", node)
            elif message.has_error():
                silent.append(Rejection(client, str(message.error.reason)))
                log.warning("node %d gave no answer: %s", node, message.error.reason)
            else:
                try:
                    found[client] = self._answered(message.content), message.content
                except WireError as error:
                    self.rejected[node] = str(error)
        usual = _usual(content for _, content in found.values())
        for client in [client for client, (_, content) in found.items() if _shape(content) != usual]:
            del found[client]
            self.rejected[nodes[client]] = OTHER_METRICS
        for node, reason in self.rejected.items():
            log.warning("the answer of node %d is not used: %s", node, reason)
        silent += [Rejection(client, "no answer came in time") for client in asked.values()]
        rows = {client: answer for client, (answer, _) in found.items()}
        return rows, [found[client][1] for client in sorted(found)], silent

    def _answered(self, content: Any) -> Answered:
        """What a node answered. Raises WireError."""
        assert self._layout is not None
        arrays = self._layout.read(_only(content.array_records, "ArrayRecord")[1])
        weight = _weight(content, self.weighted_by_key)
        vectors = self._layout.vectors(arrays)
        vectors["delta"] = vectors.pop("params") - self._sent[1]["params"]
        for name, vector in vectors.items():
            if not bool(torch.isfinite(vector).all()):
                raise WireError(f"{int((~torch.isfinite(vector)).sum())} entries of its {name} are NaN or Inf")
        return Answered(vectors, 1.0 if self.uniform else weight, arrays)

    def _replies(self, rows: Mapping[int, Answered], silent: list[Rejection]) -> Replies:
        assert self._exchange is not None and self._problem is not None
        nodes = {number: node for node, number in self._numbers.items()}
        clients = sorted(rows)
        lengths = {"delta": self._problem.d, "buffers": self._problem.network.buffer_spec.numel}
        vectors = {
            name: torch.stack([rows[client].vectors[name] for client in clients])
            if clients
            else torch.zeros(0, length, dtype=self._problem.dtype)
            for name, length in lengths.items()
            if length
        }
        rejected = [Rejection(c, self.rejected[nodes[c]]) for c in nodes if nodes[c] in self.rejected]
        weights = torch.tensor([rows[client].weight for client in clients], dtype=self._problem.dtype)
        ids = torch.tensor(clients, dtype=torch.int64)
        return Replies(self._exchange, ids, vectors, weights, {}, {}, tuple(sorted(rejected)), tuple(sorted(silent)))

    def _metrics(self, contents: list[Any]) -> Any:
        """The nodes' metrics, averaged as Flower does, with what the method said of the round."""
        weights = [_only(content.metric_records, "MetricRecord")[1][self.weighted_by_key] for content in contents]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key) if sum(weights) > 0 else MetricRecord()
        numbers = {name: value for name, value in self.told.items() if isinstance(value, int | float)}
        for name, value in {**numbers, "rejected": len(self.rejected)}.items():
            metrics[f"{RECORD}.{name}"] = value
        return metrics


class Answered(NamedTuple):
    """A node's answer, read."""

    vectors: Named
    """`delta [d]`, and `buffers [b]`."""
    weight: float
    arrays: Arrays


def _said(exchange: Exchange) -> dict[str, float]:
    """The numbers that go to the nodes beside the model. Raises FedoptError where there is more to say."""
    more = {name: value for name, value in exchange.down.items() if name not in ("params", "buffers")}
    vectors = [name for name, value in more.items() if value.dim()]
    if exchange.program != "train" or exchange.own or vectors:
        what = ", ".join([*exchange.own, *vectors]) or f"the program '{exchange.program}'"
        raise FedoptError(f"the method asks clients for more than to train, with {what}; a ClientApp does not know it")
    return {name: value.item() for name, value in more.items()}


def _check_answers(method: Strategy, problem: Problem, exchange: Exchange) -> None:
    """Raises ConfigError unless clients of a method that is not known here answer a difference and no more."""
    work = method.programs(problem).work[exchange.program]
    client = Client(dict(exchange.down), {}, {}, keys.root(0), torch.tensor(0))
    with torch.no_grad():
        vectors = work.finish(client, work.start(client)).vectors
    if "delta" not in vectors or vectors.keys() - {"delta", "buffers"}:
        raise ConfigError("method", f"its clients answer {', '.join(vectors)}; a ClientApp answers a model, a delta")


def _weight(content: Any, name: str) -> float:
    """What a reply says of its weight, under this name. Raises WireError."""
    weight = _only(content.metric_records, "MetricRecord")[1].get(name)
    if not (isinstance(weight, int | float) and 0 <= weight <= HEAVIEST):
        raise WireError(f"the metric '{name}', a number from 0 to 2^53, is needed, {weight!r:.80} was given")
    return float(weight)


def _shape(content: Any) -> frozenset[tuple[str, int]]:
    """Names of a reply's metrics, and how long each is."""
    metrics = _only(content.metric_records, "MetricRecord")[1]
    return frozenset((n, len(value) if isinstance(value, list) else -1) for n, value in metrics.items())


def _usual(contents: Iterable[Any]) -> frozenset[tuple[str, int]]:
    """The shape that most have; of several, the first."""
    counted = Counter(map(_shape, contents)).most_common(1)
    return counted[0][0] if counted else frozenset()


def _middle(arrays: list[Arrays]) -> Arrays:
    """In every entry the lower median: whole numbers stay whole, and few nodes cannot move them far."""
    if not arrays:
        return {}
    return {n: np.sort(np.stack([one[n] for one in arrays]), axis=0)[(len(arrays) - 1) // 2] for n in arrays[0]}


def mod(codec: str | Mapping[str, Any], *, buffers: Sequence[str] = ()) -> Callable[[Any, Any, Any], Any]:
    """A mod for a ClientApp: what it answers, less what it was sent, goes to the server as a code.

    codec: a name, or a table as `[compression]` in a config, with `feedback`; `decoded` is given the same.
    buffers: patterns over the names of arrays that go as they stand, like arrays of whole numbers.

    What codec and feedback keep lies in the state of the context. It is taken back where the server did not take in
    the answer, so both ends stay in step when answers are lost; a node that lost its state begins anew, and says so.

    Raises ConfigError for unknown names and options.
    """
    _coding(codec, ())

    def compress(message: Any, context: Any, call_next: Any) -> Any:
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        told = message.content.config_records.get(RECORD)
        if told is None:
            raise FedoptError("this ClientApp compresses what it answers, and its server does not know; wrap the"
                              " server's strategy: fedopt.wire.flower.decoded(strategy, codec)")  # fmt: skip
        del message.content[RECORD]
        sent = _only(message.content.array_records, "ArrayRecord")[1]
        layout = _layout(sent, buffers)
        before = layout.vectors(layout.read(sent))
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        name, answer = _only(reply.content.array_records, "ArrayRecord")
        arrays = layout.read(answer)
        after = layout.vectors(arrays)
        programs = _coding(codec, layout.params.shapes).programs(_problem(layout, before, 1))
        exchange, rank, memory = int(told["exchange"]), int(told["rank"]), int(told["memory"])
        kept = _kept(context, memory, programs.memory)
        memory = memory if kept is not None else 0
        client = Client(
            _shared(int(told["key"])),
            {f"{PREFIX}rank": torch.tensor(rank)},
            programs.memory if kept is None else kept,
            keys.fold(torch.tensor(int(told["key"])), "client", rank),
            torch.tensor(0),
        )
        with torch.no_grad():
            uplink = programs.work["train"].finish(client, after["params"] - before["params"])
        _keep(context, exchange, memory, {**client.memory, **uplink.memory})
        said = uplink.said["delta"]
        hearing = programs.coded["delta"]
        written = plain(said.vector)
        if not bool(said.whole):
            d = said.vector.numel()
            written = Written(hearing.codec.name, d, hearing.codec.write(said.code, d))
        body = write_up(exchange, rank, {"delta": written}, {"memory": memory}, 1.0)
        others = {n: answer[n] for n in layout.kinds if n not in layout.params.names}
        reply.content[name] = ArrayRecord({CODE: Array("uint8", (len(body),), CODED, body), **others})
        return reply

    return compress


def decoded(strategy: Any, codec: str | Mapping[str, Any], *, buffers: Sequence[str] = (), seed: int = 0) -> Decoded:
    """A Flower strategy whose nodes have the `mod` of the same `codec` and `buffers`; it is handed what they answered.

    strategy: any that sends one ArrayRecord and gets one from each node, of Flower's or of this module's.
    seed: of the keys that codecs draw with.

    An answer that is no code of such arrays is dropped, with a warning that names the node.
    """
    _coding(codec, ())
    return Decoded(strategy, codec, tuple(buffers), seed)


class Decoded(FlowerStrategy):  # type: ignore[misc]  # Flower is not looked into
    """See `decoded`. `rejected` says whose answers of the last round were none, `nbytes` how long the codes were."""

    def __init__(self, strategy: Any, codec: str | Mapping[str, Any], buffers: tuple[str, ...], seed: int) -> None:
        super().__init__()
        self.strategy, self.codec, self.buffers, self.key = strategy, codec, buffers, keys.root(seed)
        self.rejected: dict[int, str] = {}
        self.nbytes: dict[int, int] = {}
        self._exchange = 0
        self._held: dict[int, tuple[int, Named]] = {}
        """What is kept of a node, and since which exchange."""
        self._asked: dict[int, int] = {}
        self._sent: tuple[Layout, Arrays, Named, Programs] | None = None

    def summary(self) -> None:
        """Log the codec and the strategy."""
        name, _ = _component(self.codec, "codec")
        log.info("answers come as codes of fedopt's %s", name)
        self.strategy.summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """The strategy's messages, with what a codec has to know."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if not messages:
            return messages
        layout = _layout(arrays, self.buffers)
        read = layout.read(arrays)
        vectors = layout.vectors(read)
        programs = _coding(self.codec, layout.params.shapes).programs(_problem(layout, vectors, 1))
        self._exchange += 1
        self._sent = layout, read, vectors, programs
        self._asked = {message.metadata.dst_node_id: rank for rank, message in enumerate(messages)}
        told = {"exchange": self._exchange, "key": int(keys.fold(self.key, "exchange", self._exchange))}
        for message in messages:
            node = message.metadata.dst_node_id
            since = self._held.get(node, (0, {}))[0]
            own = ConfigRecord({**told, "rank": self._asked[node], "memory": since})
            # Flower's strategies give all messages one content
            message.content = RecordDict({**message.content, RECORD: own})
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The strategy's step on the arrays that the codes stand for."""
        self.rejected, self.nbytes, good = {}, {}, []
        for message in replies:
            node = message.metadata.src_node_id
            if not message.has_error():
                try:
                    self._decode(node, message)
                except WireError as error:
                    self.rejected[node] = str(error)
                    log.warning("the answer of node %d is not used: %s", node, error)
                    continue
            good.append(message)
        return self.strategy.aggregate_train(server_round, good)  # type: ignore[no-any-return]

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """As the strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)  # type: ignore[no-any-return]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
        """As the strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _decode(self, node: int, message: Any) -> None:
        """Put arrays in the place of a code. Raises WireError."""
        if self._sent is None or node not in self._asked:
            raise WireError("it was not asked, or has answered")
        rank = self._asked.pop(node)
        layout, read, sent, programs = self._sent
        hearing = programs.coded["delta"]
        name, record = _only(message.content.array_records, "ArrayRecord")
        if CODE not in record or record[CODE].stype != CODED:
            raise WireError(
                f"a code is needed, arrays were given; has its ClientApp the mod of '{hearing.codec.name}'?"
            )
        awaited = Awaited(layout.params.numel, hearing.codec, layout.params.dtype, whole=True)
        answer = read_up(record[CODE].data, self._exchange, rank, {"delta": awaited})
        since, held = self._held.get(node, (0, hearing.held))
        memory = answer.metrics.get("memory")
        if memory not in (0, since):
            raise WireError(f"it went on from exchange {memory!r:.80}, and {since} is the last that was taken in")
        told = _shared(int(keys.fold(self.key, "exchange", self._exchange)))
        row, now = hearing.read(
            answer.vectors["delta"], "delta" in answer.whole, held if memory == since else hearing.held, told
        )
        if not bool(torch.isfinite(row).all()):
            raise WireError(f"{int((~torch.isfinite(row)).sum())} of {row.numel()} entries of its delta are NaN or Inf")
        others = {n: kind for n, kind in layout.kinds.items() if n not in layout.params.names}
        if wrong := sorted(record.keys() ^ {CODE, *others}):
            raise WireError(f"the arrays {', '.join([CODE, *others])} are needed, and '{wrong[0]:.80}' is not in both")
        beside = {n: _array(n, record[n], *kind) for n, kind in others.items()}
        self._held[node] = self._exchange, now
        self.nbytes[node] = len(record[CODE].data)
        vectors = {**sent, "params": sent["params"] + row}
        if "buffers" in vectors:
            vectors["buffers"] = layout.vectors({**read, **beside})["buffers"]
        message.content[name] = layout.arrays(vectors, beside)


def _coding(codec: str | Mapping[str, Any], shapes: tuple[tuple[int, ...], ...]) -> Compressed:
    """Compression of a vector that is handed over as it is, at both ends."""
    name, options = _component(codec, "codec")
    memory = feedback.build(*_component(options.pop("feedback", "none"), "codec.feedback"), "codec.feedback")
    built = compression.build(name, options, "codec", shapes or None)

    def finish(client: Client, carry: Tensor) -> Uplink:
        return Uplink({"delta": carry}, {}, {}, torch.ones(()))

    program = ClientProgram(lambda client: None, lambda client, carry, batch: carry, finish)
    inner: Any = SimpleNamespace(programs=lambda problem: Programs({"train": program}, {}))
    return Compressed(inner, built, memory, spoken=True)


def _shared(key: int) -> Named:
    """What `fedopt.compressed` sends to all."""
    return {f"{PREFIX}shared": keys.fold(torch.tensor(key), "shared")}


def _kept(context: Any, exchange: int, like: Named) -> Named | None:
    """The memory that a node had after an exchange, 0 for the first values; None where it has it no more."""
    if not exchange or not like:
        return like
    record = context.state.array_records.get(f"{RECORD}.{exchange}")
    if record is None:
        return None
    try:
        kinds = {name: (tuple(value.shape), value.numpy().dtype) for name, value in like.items()}
        return {name: torch.from_numpy(_array(name, record[name], *kind)) for name, kind in kinds.items()}
    except (KeyError, WireError):  # of another codec, or of another model
        return None


def _keep(context: Any, exchange: int, before: int, memory: Named) -> None:
    """Put a memory aside, beside the one that it came from, until the server says which it goes on from."""
    for name in [n for n in context.state if n.startswith(f"{RECORD}.") and n != f"{RECORD}.{before}"]:
        del context.state[name]
    if memory:
        record = {name: Array(np.asarray(value.numpy(), order="C")) for name, value in memory.items()}
        context.state[f"{RECORD}.{exchange}"] = ArrayRecord(record)


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
