"""Rules, server optimizers and whole strategies of fedopt as Flower strategies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedopt import aggregators, keys, optimizers, strategies
from fedopt.aggregators import pre
from fedopt.compressed import bare
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.strategies.fedavg import fedavg
from fedopt.types import (
    Batches,
    Client,
    Exchange,
    FedoptError,
    Info,
    Named,
    Optimizer,
    Participation,
    Rejection,
    Replies,
    Strategy,
    WireError,
)
from fedopt.wire.flower.codec import RECORD
from fedopt.wire.flower.vectors import Arrays, Held, Layout, component_of, layout_of, only, problem_of

log = logging.getLogger("flwr")  # the one that a Flower user reads

HEAVIEST = 1 << 53
"""No node counts for more; in float32, weights above 2^127 would make shares of NaN."""

OTHER_METRICS = "its metrics are not those that most nodes gave"

TRAINING = ("fedavg", "fedprox")
"""Built-in strategies whose clients train locally and answer the difference, as a ClientApp does."""


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
    name, options = component_of(rule, "rule")
    steps = [
        pre.build(*component_of(step, f"rule.pre.{i}"), f"rule.pre.{i}")
        for i, step in enumerate(options.pop("pre", ()))
    ]
    built = pre.composed(aggregators.build(name, options, "rule"), steps, "rule")
    step_name, step = component_of({"name": "sgd", "lr": 1.0} if server is None else server, "server")
    local = None
    if optimizer is not None:
        local = optimizers.build(*component_of(optimizer, "optimizer"))
    elif "reference" in built.needs:
        raise ConfigError(
            "optimizer", f"rule '{built.name}' compares with what the server trains itself; say with which optimizer"
        )
    method = fedavg(
        participation=selection(),
        aggregator=built,
        optimizer=cast(Optimizer, local),  # without one, nobody is told its numbers
        server=optimizers.at_server(optimizers.build(step_name, step, "server"), "server"),
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
            self._layout = layout = layout_of(arrays, self.buffers, self.trial)
            read = layout.read(arrays)
            clients = max(connected, 1) if self.clients is None else self.clients
            self._problem = problem_of(layout, layout.vectors(read), clients, self.trial)
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
        arrays = self._layout.read(only(content.array_records, "ArrayRecord")[1])
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
        weights = [only(content.metric_records, "MetricRecord")[1][self.weighted_by_key] for content in contents]
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
    weight = only(content.metric_records, "MetricRecord")[1].get(name)
    if not (isinstance(weight, int | float) and 0 <= weight <= HEAVIEST):
        raise WireError(f"the metric '{name}', a number from 0 to 2^53, is needed, {weight!r:.80} was given")
    return float(weight)


def _shape(content: Any) -> frozenset[tuple[str, int]]:
    """Names of a reply's metrics, and how long each is."""
    metrics = only(content.metric_records, "MetricRecord")[1]
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
