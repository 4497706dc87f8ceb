"""fedopt's rules and codecs in plain Flower apps, and Flower's strategies in fedopt's loop."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedopt[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flwr_strategies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi, Krum
from flwr.supercore.task_identity import TaskIdentity

import fedopt
from fedopt import aggregators, compression, keys
from fedopt.aggregators import pre
from fedopt.compression import feedback
from fedopt.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedopt.optimizers import build as optimizer_of
from fedopt.optimizers.sgd import sgd
from fedopt.participation import selection
from fedopt.registry import ConfigError
from fedopt.strategies.fedavg import fedavg
from fedopt.strategies.fedbuff import fedbuff
from fedopt.strategies.fedprox import fedprox
from fedopt.types import Batches, FedoptError
from fedopt.wire.flower import Held, Stock, codec, decoded, hosted, mod, served, stock, strategy

logging.getLogger("flwr").setLevel(logging.ERROR)

SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4)}
Train = Callable[[int, dict[str, Any]], dict[str, Any]]


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made by a task of a run."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Nodes:
    """A grid whose nodes are ClientApps in this process. `lose` says whose answers never come, `change` what comes."""

    def __init__(self, apps: dict[int, ClientApp]) -> None:
        self.apps = apps
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in apps}
        self.lose: set[int] = set()
        self.change: Callable[[Message], Message] = lambda message: message
        self.answers: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return list(self.apps)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.answers = []
        for message in messages:
            node = message.metadata.dst_node_id
            content = RecordDict({name: record.copy() for name, record in message.content.items()})
            own = Message(content, dst_node_id=node, message_type=message.metadata.message_type)
            answer = self.apps[node](own, self.contexts[node])
            if node not in self.lose:
                self.answers.append(self.change(answer))
        return self.answers


def row(node: int, arrays: dict[str, Any], round: int = 1) -> dict[str, Any]:
    """What a node adds to the arrays, drawn from its number."""
    draw = np.random.default_rng([node, round])
    return {name: draw.normal(size=value.shape).astype(np.float32) for name, value in arrays.items()}


def client_app(node: int, mods: tuple[Any, ...] = (), **metrics: Any) -> ClientApp:
    """Adds what `row` says; tells `10 + node` examples."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        added = row(node, arrays, message.content["config"]["server-round"])
        new = {
            n: Array(np.asarray(a + added[n] if a.dtype.kind == "f" else a + node, dtype=a.dtype))
            for n, a in arrays.items()
        }
        numbers = {"num-examples": 10 + node, "loss": float(node), **metrics}
        return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": MetricRecord(numbers)}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})}), reply_to=message)

    return app


def nodes(count: int = 9, mods: tuple[Any, ...] = ()) -> Nodes:
    return Nodes({1000 + 7 * i: client_app(i, mods) for i in range(count)})


def first(dtype: Any = np.float32) -> ArrayRecord:
    draw = np.random.default_rng(1)
    return ArrayRecord({name: Array(draw.normal(size=shape).astype(dtype)) for name, shape in SHAPES.items()})


def flat(record: Any) -> Tensor:
    return torch.cat([torch.from_numpy(array.numpy()).flatten().to(torch.float32) for array in record.values()])


def rows(count: int = 9, round: int = 1) -> tuple[Tensor, Tensor]:
    """The differences of all nodes `[n, d]`, and how many examples they tell."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    found = [row(i, arrays, round) for i in range(count)]
    vectors = torch.stack([torch.cat([torch.from_numpy(v).flatten() for v in one.values()]) for one in found])
    return vectors, torch.tensor([10.0 + i for i in range(count)])


# ---------------------------------------------------------------------------------------------------------------------


RULES: dict[str, dict[str, Any]] = {
    "mean": {}, "krum": {"f": 2}, "median": {}, "trimmed_mean": {"f": 2}, "geometric_median": {}, "bulyan": {"f": 1},
    "centered_clipping": {"tau": 2.0}, "foolsgold": {}, "norm_clipping": {}, "signguard": {}, "meamed": {"f": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_ours_gives_in_a_flower_app_what_it_gives_alone(name: str) -> None:
    ours = strategy({"name": name, **RULES[name]}, clients=9, min_available_nodes=9)
    found = ours.start(nodes(), first(), num_rounds=2).arrays
    rule = aggregators.build(name, RULES[name])
    model, state, previous = flat(first()), rule.init(9), torch.zeros(24)
    for round in (1, 2):
        updates, weights = rows(round=round)
        key = keys.fold(keys.fold(keys.fold(keys.root(0), "round", round), "absorb"), "rule")
        offers = {"weights": weights, "clients": torch.arange(9), "previous": previous, "key": key}
        previous, state, _ = rule.apply(updates, state, **offers)
        model = model + previous
    torch.testing.assert_close(flat(found), model, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(flat(found), flat(first()))


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        ("mean", FedAvg()),
        ("median", FedMedian()),
        ({"name": "trimmed_mean", "f": 2}, FedTrimmedAvg(beta=0.25)),
        ({"name": "krum", "f": 2}, Krum(num_malicious_nodes=2)),
    ],
    ids=["mean", "median", "trimmed_mean", "krum"],
)
def test_our_rules_and_flowers_agree(rule: Any, theirs: Any) -> None:
    ours = strategy(rule).start(nodes(), first(), num_rounds=3)
    wanted = theirs.start(nodes(), first(), num_rounds=3)
    torch.testing.assert_close(flat(ours.arrays), flat(wanted.arrays), rtol=1e-5, atol=1e-6)
    for round, metrics in ours.train_metrics_clientapp.items():
        if rule == "mean":
            assert metrics["loss"] == pytest.approx(wanted.train_metrics_clientapp[round]["loss"])
        assert metrics["fedopt.rejected"] == 0 and metrics["fedopt.delta_norm"] > 0
    assert ours.evaluate_metrics_clientapp[3] == wanted.evaluate_metrics_clientapp[3]


def test_a_server_optimizer_steps_along_the_rule() -> None:
    given = {"name": "adam", "lr": 0.3, "eps": 0.01}
    rule: dict[str, Any] = {"name": "median", "pre": [{"name": "nnm", "f": 2}]}
    found = strategy(rule, server=given).start(nodes(), first(), num_rounds=3).arrays
    optimizer = optimizer_of("adam", {"lr": 0.3, "eps": 0.01})
    built = pre.composed(aggregators.build("median", {}), [pre.build("nnm", {"f": 2})])
    params = {"x": flat(first())}
    state = optimizer.init(params)
    for round in range(3):
        updates, weights = rows(round=round + 1)
        delta = built.apply(updates, (), weights=weights, clients=torch.arange(9), key=keys.root(0))[0]
        hyper = {n: torch.tensor(getattr(optimizer, n)) for n in ("lr", "beta1", "beta2", "eps", "initial_accumulator")}
        params, state = optimizer.update({"x": -delta}, state, params, hyper)
    torch.testing.assert_close(flat(found), params["x"], rtol=1e-5, atol=1e-6)


def test_the_clients_are_told_the_numbers_of_their_optimizer() -> None:
    there, seen = nodes(3), []

    def look(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(dict(message.content["config"]))
        reply: Message = call_next(message, context)
        return reply

    there.apps = {node: client_app(0, (look,)) for node in there.apps}
    given = {"name": "sgd", "lr": {"schedule": "exponential", "start": 0.5, "decay": 0.5}, "momentum": 0.9}
    strategy(optimizer=given, fraction_evaluate=0.0).start(there, first(), num_rounds=2)
    assert [one["optimizer.lr"] for one in seen] == [0.5] * 3 + [0.25] * 3
    assert seen[0]["optimizer.momentum"] == pytest.approx(0.9)
    assert seen[0]["server-round"] == 1
    seen.clear()
    method = fedprox(selection(count=2), aggregators.build("mean", {}), sgd(lr=0.1), sgd(lr=1.0), mu=0.25)
    served(method, fraction_evaluate=0.0).start(there, first(), num_rounds=1)
    assert [one["mu"] for one in seen] == [0.25, 0.25]  # and two of three were asked


def test_a_whole_strategy_of_ours() -> None:
    """Server momentum, uniform weights, and a sample of two."""
    method = fedavg(
        participation=selection(count=2), aggregator=aggregators.build("mean", {}), optimizer=sgd(lr=0.1),
        server=sgd(lr=0.7, momentum=0.5), weighting="uniform",
    )  # fmt: skip
    there, asked = nodes(), []
    there.change = lambda message: asked.append(message.metadata.src_node_id) or message  # type: ignore[func-returns-value]
    ours = served(method, seed=3, fraction_evaluate=0.0)
    found = ours.start(there, first(), num_rounds=2).arrays
    assert len(asked) == 4
    model, velocity = flat(first()), torch.zeros(24)
    for round, pair in ((1, asked[:2]), (2, asked[2:])):
        delta = rows(round=round)[0][[(node - 1000) // 7 for node in pair]].mean(dim=0)
        velocity = 0.5 * velocity - delta
        model = model - 0.7 * velocity
    torch.testing.assert_close(flat(found), model, rtol=1e-5, atol=1e-6)
    assert ours.state.round == 2
    again: list[int] = []
    there = nodes()
    there.change = lambda message: again.append(message.metadata.src_node_id) or message  # type: ignore[func-returns-value]
    served(method, seed=3, fraction_evaluate=0.0).start(there, first(), num_rounds=2)
    assert [set(again[:2]), set(again[2:])] == [set(asked[:2]), set(asked[2:])]


def test_arrays_that_are_no_parameters() -> None:
    """Statistics are averaged by weight, whole numbers take the middle one; every array keeps its dtype."""
    record = first()
    record["norm.running_mean"] = Array(np.zeros(2, np.float64))
    record["norm.batches"] = Array(np.asarray(5))
    found = strategy("median", buffers=["*running_*"]).start(nodes(5), record, num_rounds=1).arrays
    arrays = {name: array.numpy() for name, array in record.items()}
    drawn = [row(i, arrays)["norm.running_mean"] for i in range(5)]
    wanted = np.average(drawn, axis=0, weights=[10, 11, 12, 13, 14])
    np.testing.assert_allclose(found["norm.running_mean"].numpy(), wanted, rtol=1e-6)
    assert found["norm.batches"].numpy() == 5 + 2 and found["norm.batches"].numpy().shape == ()
    assert [found[n].numpy().dtype for n in record] == [a.dtype for a in arrays.values()]
    with pytest.raises(ConfigError, match=r"buffers: no array matches 'running'; there are body\.weight"):
        strategy(buffers=["running"]).start(nodes(3), first(), num_rounds=1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return out


@pytest.mark.parametrize("rule", ["bant", "fltrust"])
def test_rules_that_try_updates_out_on_what_the_server_holds(rule: str) -> None:
    """Node 0 answers the model of descent; the others send noise."""
    net, draw = Net(), torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=draw)
    y = (x[:, 0] > 0).long()
    record = ArrayRecord(net.state_dict())
    trained = Net()
    trained.load_state_dict(net.state_dict())
    steps = torch.optim.SGD(trained.parameters(), lr=0.5)
    for _ in range(20):
        steps.zero_grad()
        nn.functional.cross_entropy(trained(x), y).backward()
        steps.step()
    honest = ArrayRecord(trained.state_dict())

    def answer(message: Message) -> Message:
        if message.metadata.src_node_id == 1000:
            message.content["arrays"] = honest
        return message

    there = nodes(4)
    there.change = answer
    ours = strategy(
        rule, trial=Held(net, x, y), clients=10, optimizer={"name": "sgd", "lr": 0.5}, fraction_evaluate=0.0
    )
    found = ours.start(there, record, num_rounds=1).arrays
    trust = ours.told["trust"]
    assert trust["0"] == max(trust.values()) and trust["0"] > 0.5
    fresh = Net()
    fresh.load_state_dict(found.to_torch_state_dict())
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(one.train()(x), y) for one in (net, fresh))
    assert after < before


def test_what_a_plain_app_cannot_give_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rule\.name: no aggregators component 'krun'\. Did you mean 'krum'"):
        strategy("krun")
    with pytest.raises(ConfigError, match=r"rule\.g: unknown option"):
        strategy({"name": "krum", "g": 1})
    with pytest.raises(
        ConfigError, match=r"trial: rule 'bant' needs labelled samples.*give trial = Held\(module, x, y"
    ):
        strategy("bant", clients=4)
    held = Held(nn.Linear(2, 2), torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="optimizer: rule 'fltrust' compares with what the server trains itself"):
        strategy("fltrust", trial=held)
    with pytest.raises(ConfigError, match="clients: rule 'foolsgold' keeps something of each node"):
        strategy("foolsgold")
    parts: Any = (selection(), aggregators.build("mean", {}), sgd(lr=0.1), sgd(lr=1.0))
    with pytest.raises(ConfigError, match=r"method: the clients of 'fedbuff' do more .* take fedavg or fedprox"):
        served(fedbuff(*parts))
    with pytest.raises(ConfigError, match=r"participation\.name: 'oort' chooses by what clients hold or tell"):
        served(fedavg(selection("oort", count=2), *parts[1:]))
    with pytest.raises(ConfigError, match=r"method: its clients keep optimizer\.0"):
        kept = fedavg(*parts[:2], sgd(lr=0.1, momentum=0.9), parts[3], optimizer_state="kept")
        served(kept).start(nodes(3), first(), num_rounds=1)
    with pytest.raises(FedoptError, match=r"the app's array 'body.bias' is none of the module's"):
        strategy("bant", clients=4, trial=held).start(nodes(3), first(), num_rounds=1)


def test_too_few_answers_keep_the_model(caplog: pytest.LogCaptureFixture) -> None:
    there = nodes(5)
    there.lose = {1000, 1007}
    with caplog.at_level(logging.WARNING, "flwr"):
        found = strategy({"name": "krum", "f": 1}).start(there, first(), num_rounds=1)
    assert flat(found.arrays).equal(flat(first()))
    assert "krum with f = 1 needs n >= 2f + 3 = 5 clients per exchange, 3 were given" in caplog.text
    there.lose = set(there.apps)
    ours = strategy("mean")
    assert flat(ours.start(there, first(), num_rounds=2).arrays).equal(flat(first()))
    assert ours.told["kept_model"] == "no answer was accepted"


def test_no_more_nodes_than_were_said() -> None:
    there, asked = nodes(6), []
    there.change = lambda message: asked.append(message.metadata.src_node_id) or message  # type: ignore[func-returns-value]
    strategy("foolsgold", clients=4, fraction_evaluate=0.0).start(there, first(), num_rounds=2)
    assert sorted(asked) == [1000, 1000, 1007, 1007, 1014, 1014, 1021, 1021]


def npy(text: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nan": (lambda c: put(c, np.full((4, 3), np.nan, np.float32)), "12 entries of its delta are NaN or Inf"),
    "shape": (lambda c: put(c, np.zeros((3, 4), np.float32)), r"needed as \[4, 3\] of float32"),
    "dtype": (lambda c: put(c, np.zeros((4, 3))), r"needed as \[4, 3\] of float32"),
    "huge": (
        lambda c: raw(c, npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n")),
        r"needed as \[4, 3\] of float32",
    ),
    "objects": (
        lambda c: raw(c, npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }\n", b"\x80\x04.")),
        r"needed as \[4, 3\] of float32",
    ),
    "short": (
        lambda c: raw(c, npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }\n", b"\0" * 47)),
        "48 bytes are needed for the array 'body.weight', 47 were given",
    ),
    "no header": (lambda c: raw(c, b"hello"), "has no header of NumPy's"),
    "code": (lambda c: raw(c, npy(b"(" * 5000)), "has no header of NumPy's"),
    "kind": (lambda c: raw(c, b"", stype="pickle"), "as NumPy writes it, 'pickle' was given"),
    "names": (lambda c: c["arrays"].pop("body.bias"), "'body.bias' is not in both"),
    "more arrays": (lambda c: c.__setitem__("more", ArrayRecord()), "one ArrayRecord is needed, 2 were given"),
    "no metrics": (lambda c: c.__delitem__("metrics"), "one MetricRecord is needed, 0 were given"),
    "weight": (lambda c: c["metrics"].__setitem__("num-examples", -1), r"from 0 to 2\^53, is needed, -1 was given"),
    "weights": (lambda c: c["metrics"].__setitem__("num-examples", [1]), r"needed, \[1\] was given"),
    "infinite weight": (lambda c: c["metrics"].__setitem__("num-examples", float("inf")), "needed, inf was given"),
    "nan weight": (lambda c: c["metrics"].__setitem__("num-examples", float("nan")), "needed, nan was given"),
    "heavy weight": (lambda c: c["metrics"].__setitem__("num-examples", 1e39), r"needed, 1e\+39 was given"),
    "metrics": (lambda c: c["metrics"].__setitem__("loss", [1.0, 2.0]), "its metrics are not those that most nodes"),
}


def put(content: Any, value: Any) -> None:
    content["arrays"]["body.weight"] = Array(value)


def raw(content: Any, data: bytes, stype: str = "numpy.ndarray") -> None:
    content["arrays"]["body.weight"] = Array("float32", (4, 3), stype, data)


@pytest.mark.parametrize("wrong", BAD)
def test_an_answer_that_is_none_costs_its_node_the_round_and_nobody_else(wrong: str) -> None:
    import re

    spoil, reason = BAD[wrong]
    there = nodes(5)

    def change(message: Message) -> Message:
        if message.metadata.src_node_id == 1014 and (
            message.content.array_records or "metric" in wrong or "weight" in wrong
        ):
            spoil(message.content)
        return message

    there.change = change
    ours = strategy("mean")
    found = ours.start(there, first(), num_rounds=1)
    assert list(ours.rejected) == [1014] and re.search(reason, ours.rejected[1014]), ours.rejected
    updates, weights = rows(5)
    left = torch.tensor([True, True, False, True, True])
    mean = (weights[left] / weights[left].sum()) @ updates[left]
    torch.testing.assert_close(flat(found.arrays), flat(first()) + mean, rtol=1e-5, atol=1e-6)
    assert found.train_metrics_clientapp[1]["fedopt.rejected"] == 1
    assert found.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.5)


def test_errors_strangers_and_second_answers_are_not_used() -> None:
    there = nodes(5)
    ours = strategy("mean")

    def answer(node: int, said: Any) -> Message:
        asked = Message(RecordDict(), dst_node_id=node, message_type="train")
        return Message(said, reply_to=asked)

    def receive(messages: Iterable[Message], **more: Any) -> list[Message]:
        found = Nodes.send_and_receive(there, messages)
        if not found[0].content.array_records:
            return found
        other = RecordDict({"arrays": first(), "metrics": found[0].content["metrics"]})
        found = [one for one in found if one.metadata.src_node_id != 1007]
        return [*found, answer(1007, Error(1, "broke")), answer(77, other), answer(1028, other)]

    there.send_and_receive = receive  # type: ignore[method-assign]
    found = ours.start(there, first(), num_rounds=1)
    updates, weights = rows(5)
    left = torch.tensor([True, False, True, True, True])
    mean = (weights[left] / weights[left].sum()) @ updates[left]
    torch.testing.assert_close(flat(found.arrays), flat(first()) + mean, rtol=1e-5, atol=1e-6)


def test_other_arrays_than_the_last_round_gave_are_refused() -> None:
    ours = strategy("mean")
    ours.start(nodes(3), first(), num_rounds=1)
    with pytest.raises(FedoptError, match="have to be those that the last one gave"):
        ours.configure_train(2, first(), ConfigRecord(), nodes(3))
    ours.start(nodes(3), first(), num_rounds=1)  # from the start, with a state of its own


# ---------------------------------------------------------------------------------------------------------------------


CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "topk": {"share": 0.2},
    "topk ef14": {"share": 0.2, "feedback": "ef14"},
    "topk ef21": {"share": 0.2, "feedback": "ef21"},
    "qsgd diana": {"levels": 4, "feedback": "diana"},
    "qsgd marina": {"levels": 4, "feedback": {"name": "marina", "whole": 0.5}},
    "powersgd ef14": {"rank": 1, "feedback": "ef14"},
    "permk": {"n": 4},
    "sign": {},
    "natural": {},
}


def simulated(coding: dict[str, Any], rounds: int, lost: tuple[int, int] | None = None) -> Tensor:
    """The model after some rounds of means of four clients, through codec and feedback in plain loops."""
    options = dict(coding)
    name, memory = options.pop("name"), options.pop("feedback", "none")
    memory = {"name": memory} if isinstance(memory, str) else dict(memory)
    around = feedback.build(memory.pop("name"), memory)
    codec = compression.build(name, options, shapes=tuple(SHAPES.values()))
    kept = [around.start(24) for _ in range(4)]
    inner = [codec.start(24) for _ in range(4)]
    model = flat(first())
    for round in range(1, rounds + 1):
        updates, weights = rows(4, round)
        key = keys.fold(keys.root(0), "exchange", round)
        shared, decoded_rows = keys.fold(key, "shared"), []
        for i in range(4):
            said: list[Any] = []

            def code(
                v: Tensor, i: int = i, said: list[Any] = said, key: Tensor = key, shared: Tensor = shared
            ) -> Tensor:
                offers = {"shared": shared, "rank": torch.tensor(i), "kept": inner[i]}
                own = keys.fold(keys.fold(key, "client", i), "compression", "delta")
                said.append(codec.compress(v, own, **{n: offers[n] for n in codec.asks}))
                return codec.restore(said[-1], 24)

            sent = around.step(updates[i], kept[i], code, shared=shared, error=codec.error(24))
            if lost == (round, i):
                continue
            kept[i], inner[i] = sent.kept, codec.after(said[-1], 24)
            decoded_rows.append((weights[i], sent.row))
        total = sum(weight for weight, _ in decoded_rows)
        model = model + sum(weight / total * one for weight, one in decoded_rows)
    return model


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("whose", ["flower's", "ours"])
def test_codes_of_answers_mean_what_codec_and_feedback_say(name: str, whose: str) -> None:
    coding = {"name": name.split()[0], **CODECS[name]}
    there = nodes(4, (mod(coding),))
    inner = FedAvg(fraction_evaluate=0.0) if whose == "flower's" else strategy("mean", fraction_evaluate=0.0)
    around = decoded(inner, coding)
    # the rank of a node follows from the order in which Flower chose the nodes
    order = lambda grid, least, size: (sorted(grid.get_node_ids()), sorted(grid.get_node_ids()))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flwr.serverapp.strategy.fedavg.sample_nodes", order)
        found = around.start(there, first(), num_rounds=4).arrays
    assert not around.rejected
    torch.testing.assert_close(flat(found), simulated(coding, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["topk ef14", "topk ef21", "powersgd ef14"])
def test_memories_stay_in_step_when_an_answer_is_lost(name: str) -> None:
    coding = {"name": name.split()[0], **CODECS[name]}
    there = nodes(4, (mod(coding),))

    class Losing(FedAvg):  # type: ignore[misc]
        def configure_train(self, server_round: int, *more: Any) -> Any:
            there.lose = {1014} if server_round == 2 else set()
            return super().configure_train(server_round, *more)

    found = decoded(Losing(fraction_evaluate=0.0), coding).start(there, first(), num_rounds=4).arrays
    torch.testing.assert_close(flat(found), simulated(coding, 4, lost=(2, 2)), rtol=1e-4, atol=1e-5)


def test_a_node_that_lost_its_state_begins_anew() -> None:
    coding = {"name": "topk", "share": 0.2, "feedback": "ef21"}
    there = nodes(2, (mod(coding),))
    around = decoded(FedAvg(fraction_evaluate=0.0), coding)
    around.start(there, first(), num_rounds=2)
    there.contexts[1007].state = RecordDict()
    arrays = first()
    messages = around.configure_train(3, arrays, ConfigRecord(), there)
    around.aggregate_train(3, there.send_and_receive(messages))
    assert not around.rejected
    row_, code = around._held[1007][1]["seen"], compression.build("topk", {"share": 0.2})
    wanted = code.restore(code.compress(rows(2, 3)[0][1], keys.root(0)), 24)
    torch.testing.assert_close(row_, wanted, rtol=1e-4, atol=1e-5)


def test_codes_are_shorter_and_other_arrays_go_as_they_stand() -> None:
    coding = {"name": "topk", "share": 0.01}
    record = ArrayRecord({"w": Array(np.zeros((100, 100), np.float32)), "running_var": Array(np.ones(3, np.float32)),
                          "count": Array(np.asarray(2))})  # fmt: skip
    there = nodes(3, (mod(coding, buffers=["running_*"]),))
    around = decoded(strategy("median", buffers=["running_*"]), coding, buffers=["running_*"])
    found = around.start(there, record, num_rounds=1).arrays
    assert set(around.nbytes) == {1000, 1007, 1014} and max(around.nbytes.values()) < 1000
    assert found["count"].numpy() == 3
    drawn = [row(i, {"w": np.zeros((100, 100)), "running_var": np.ones(3)})["running_var"] for i in range(3)]
    np.testing.assert_allclose(
        found["running_var"].numpy(), 1 + np.average(drawn, axis=0, weights=[10, 11, 12]), rtol=1e-6
    )


SPOILT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "arrays": (lambda c: c.__setitem__("arrays", first()), "a code is needed, arrays were given; has its ClientApp"),
    "noise": (lambda c: said(c, b"\xff" * 40), "this is no message of the protocol"),
    "long": (lambda c: said(c, b"\0" * 400_000), "a message of .* bytes at the most is needed"),
    "others": (lambda c: c["arrays"].__setitem__("more", Array(np.zeros(1))), "'more' is not in both"),
    "replayed": (lambda c: said(c, OLD[0]), "in exchange 1 was given"),
}
OLD: list[bytes] = []


def said(content: Any, body: bytes) -> None:
    content["arrays"][codec.CODE] = Array("uint8", (len(body),), codec.CODED, body)


@pytest.mark.parametrize("wrong", SPOILT)
def test_a_code_that_is_none_costs_its_node_the_round(wrong: str) -> None:
    import re

    spoil, reason = SPOILT[wrong]
    coding = {"name": "topk", "share": 0.2, "feedback": "ef21"}
    there = nodes(4, (mod(coding),))
    around = decoded(FedAvg(fraction_evaluate=0.0), coding)
    OLD.clear()

    def change(message: Message) -> Message:
        if message.metadata.src_node_id == 1014:
            if OLD:
                spoil(message.content)
            else:
                OLD.append(message.content["arrays"][codec.CODE].data)
        return message

    there.change = change
    found = around.start(there, first(), num_rounds=2).arrays
    assert list(around.rejected) == [1014] and re.search(reason, around.rejected[1014]), around.rejected
    torch.testing.assert_close(flat(found), simulated(coding, 2, lost=(2, 2)), rtol=1e-4, atol=1e-5)


def test_ends_that_do_not_fit_say_so() -> None:
    with pytest.raises(ConfigError, match=r"codec\.name: no compression component 'topj'\. Did you mean 'topk'"):
        mod("topj")
    with pytest.raises(ConfigError, match=r"codec\.feedback\.name: no feedback component 'ef'"):
        decoded(FedAvg(), {"name": "topk", "share": 0.1, "feedback": "ef"})
    with pytest.raises(FedoptError, match="its server does not know; wrap the server's strategy"):
        FedAvg().start(nodes(3, (mod("sign"),)), first(), num_rounds=1)
    ours = decoded(strategy("mean"), {"name": "topk", "share": 0.1})
    ours.start(nodes(3, (mod("sign"),)), first(), num_rounds=1)
    assert all("by codec 'topk' is needed, one with 24 by codec 'sign'" in reason for reason in ours.rejected.values())
    assert len(ours.rejected) == 3


# ---------------------------------------------------------------------------------------------------------------------


def experiment(given: Any, **more: Any) -> fedopt.Experiment:
    options = {"rounds": 4, "dtype": "float64", "checkpoint_every": 2, **more.pop("run_options", {})}
    return fedopt.Experiment(
        model={"name": "mlp", "hidden": [8]}, data={"name": "digits", "clients": 9}, strategy=given,
        run_options=options, **{"executor": "serial", **more},
    )  # fmt: skip


PARTS: dict[str, Any] = {
    "participation": selection(count=7), "optimizer": sgd(lr=0.1), "batches": Batches(size=32),
}  # fmt: skip


def ours(rule: str = "mean", server: Any = None, **options: Any) -> Any:
    return fedavg(aggregator=aggregators.build(rule, options), server=server or sgd(lr=1.0), **PARTS)


THEIRS = {
    "mean": (FedAvg(), ours()),
    "median": (FedMedian(), ours("median")),
    "trimmed_mean": (FedTrimmedAvg(beta=0.3), ours("trimmed_mean", f=2)),
    "krum": (Krum(num_malicious_nodes=2), ours("krum", f=2)),
    "momentum": (
        FedAvgM(server_learning_rate=0.7, server_momentum=0.6), ours(server=sgd(lr=0.7, momentum=0.6))
    ),
    "adagrad": (
        flwr_strategies.FedAdagrad(eta=0.05, tau=0.01), ours(server=optimizer_of("adagrad", {"lr": 0.05, "eps": 0.01}))
    ),
    "yogi": (
        FedYogi(eta=0.05, tau=0.01),
        ours(server=optimizer_of("yogi", {"lr": 0.05, "beta2": 0.99, "eps": 0.01, "initial_accumulator": 0.0})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_a_strategy_of_flower_in_our_loop_gives_what_ours_gives(name: str, tmp_path: Path) -> None:
    theirs, same = THEIRS[name]
    found = experiment(stock(theirs, **PARTS)).run(tmp_path / "theirs")
    wanted = experiment(same).run(tmp_path / "ours")
    assert found.model is not None and wanted.model is not None
    assert [line["accuracy"] for line in found.history] == [line["accuracy"] for line in wanted.history]
    for parameter, value in wanted.model.items():
        torch.testing.assert_close(found.model[parameter], value, rtol=1e-9, atol=1e-12)


STATEFUL = {
    "FedAvg": FedAvg(),
    "FedAvgM": FedAvgM(server_learning_rate=0.7, server_momentum=0.6),
    "FedAdam": FedAdam(eta=0.05),
    "FedYogi": FedYogi(eta=0.05),
    "FedAdagrad": flwr_strategies.FedAdagrad(eta=0.05),
    "QFedAvg": flwr_strategies.QFedAvg(client_learning_rate=0.1, train_loss_key="loss"),
    "Bulyan": flwr_strategies.Bulyan(num_malicious_nodes=1),
    "DP": flwr_strategies.DifferentialPrivacyServerSideAdaptiveClipping(FedAdam(eta=0.05), 0.1, 7),
    "DP fixed": flwr_strategies.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 7),
}


@pytest.mark.parametrize(
    "name",
    # these two collect garbage at every answer
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("QFedAvg", "Bulyan") else []) for name in STATEFUL],
)
def test_a_resumed_run_is_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    before = repr(vars(STATEFUL[name]))
    whole = experiment(stock(STATEFUL[name], **PARTS)).run(tmp_path / "whole")
    state = random.getstate()
    part = experiment(stock(STATEFUL[name], **PARTS), callbacks=[lambda line: line["exchange"] == 2])
    assert part.run(tmp_path / "part").status == "stopped"
    random.seed(9)
    np.random.seed(9)
    done = experiment(stock(STATEFUL[name], **PARTS)).resume(tmp_path / "part")
    assert done.model is not None and whole.model is not None and len(done.history) == 4
    assert "kept_model" not in done.history[-1], done.history[-1]
    for parameter, value in whole.model.items():
        assert value.equal(done.model[parameter])
    assert repr(vars(STATEFUL[name])) == before  # what was given is not written to
    random.setstate(state)


def test_what_a_strategy_knows_comes_back_from_a_checkpoint_as_it_was(tmp_path: Path) -> None:
    known: dict[str, Any] = {
        "scalar": np.float64(0.1), "few": np.float32(0.5), "point": np.asarray(2.0), "numbers": {3: [1, 2.5, "x"]},
        "vectors": [np.arange(3, dtype=np.float32), np.arange(4).reshape(2, 2).T], "pair": (True, np.int64(4)),
    }  # fmt: skip
    given = FedAvg()
    vars(given).update(known, record=first(), strategy=FedAdam(eta=0.5))
    state = Stock(3, {}, hosted._attributes(given), ())
    stored = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(3, state, {}, {}))).state.flower
    found = hosted._restored(FedAvg(), {n: v for n, v in stored.items() if n != "strategy"})
    for name, value in known.items():
        back = getattr(found, name)
        np.testing.assert_equal(back, value)
        assert type(back) is type(value) and getattr(back, "dtype", None) == getattr(value, "dtype", None)
    assert type(found.pair[1]) is np.int64 and found.vectors[0].dtype == np.float32
    assert found.record == first()
    given.strategy.eta = 0.1
    inside = hosted._restored(given, stored).strategy
    assert inside.eta == 0.5 and given.strategy.eta == 0.1


def test_the_caller_goes_on_drawing_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    experiment(stock(STATEFUL["DP"], **PARTS), run_options={"rounds": 1}).run(tmp_path)
    drawn = random.random(), np.random.random()
    random.seed(0)
    np.random.seed(0)
    assert drawn == (random.random(), np.random.random())


def test_a_strategy_of_flower_with_an_attack_a_codec_and_another_executor(tmp_path: Path) -> None:
    """An attack on the mean that the median withstands; what the loop adds is added as to any strategy."""
    attack = [{"name": "sign_flip", "scale": 30.0, "count": 2}]
    more: dict[str, Any] = {"executor": "stacked", "attack": attack, "compression": {"name": "natural"}}
    mean = experiment(stock(FedAvg(), **PARTS), **more).run(tmp_path / "mean")
    median = experiment(stock(FedMedian(), **PARTS), **more).run(tmp_path / "median")
    assert median.final["loss"] < mean.final["loss"]


@pytest.mark.slow
def test_workers_of_ray_train_for_a_strategy_of_flower(tmp_path: Path) -> None:
    ray = {"name": "ray", "workers": 2, "inner": "serial"}
    spread = experiment(stock(FedAdam(eta=0.05), **PARTS), executor=ray).run(tmp_path / "ray")
    alone = experiment(stock(FedAdam(eta=0.05), **PARTS)).run(tmp_path / "serial")
    assert spread.model is not None and alone.model is not None
    for name, value in alone.model.items():
        assert value.equal(spread.model[name])


def test_a_model_with_buffers_in_our_loop(tmp_path: Path) -> None:
    class Deep(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(64, 4), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    results = []
    for given, name in ((stock(FedAvg(), **PARTS), "theirs"), (ours(), "ours")):
        torch.manual_seed(1)
        asked = experiment(given)
        asked.model = Deep()
        results.append(asked.run(tmp_path / name).model)
    found, wanted = results
    assert found is not None and wanted is not None and found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


def test_strategies_of_flower_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FedProx tells clients 'proximal-mu', and fedopt's local training does not"):
        experiment(stock(FedProx(proximal_mu=0.1), **PARTS)).run(tmp_path / "prox")
    with pytest.raises(ConfigError, match="FedXgbBagging grows trees"):
        stock(flwr_strategies.FedXgbBagging(), **PARTS)
    keeping = FedAvg()
    keeping.history = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"FedAvg\.history is of SimpleNamespace, which no checkpoint holds"):
        stock(keeping, **PARTS)
    with pytest.raises(ConfigError, match="FedAvg asks nobody to train; give it another fraction_train"):
        experiment(stock(FedAvg(fraction_train=0.0), **PARTS)).run(tmp_path / "nobody")


# ---------------------------------------------------------------------------------------------------------------------


APP = """
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from fedopt.wire.flower import decoded, mod, strategy

CODEC = {"name": "topk", "share": 0.5, "feedback": "ef21"}
server = ServerApp()
client = ClientApp(mods=[mod(CODEC)])

@server.main()
def main(grid: Grid, context: Context) -> None:
    found = decoded(strategy({"name": "trimmed_mean", "f": 1}, fraction_evaluate=0.0, min_available_nodes=3), CODEC)
    first = ArrayRecord({"w": Array(np.zeros(8, np.float32))})
    result = found.start(grid, first, num_rounds=12)
    np.save(context.run_config["out"], result.arrays["w"].numpy())

@client.train()
def train(message: Message, context: Context) -> Message:
    w = message.content["arrays"]["w"].numpy()
    who = int(context.node_config["partition-id"])
    target = np.full(8, 1e6) if who == 2 else np.arange(8)
    new = ArrayRecord({"w": Array((w + 0.5 * (target - w)).astype(np.float32))})
    metrics = MetricRecord({"num-examples": 1, "who": who})
    return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)
"""

PROJECT = """
[project]
name = "plain"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "plain"
[tool.flwr.app.components]
serverapp = "plain:server"
clientapp = "plain:client"
[tool.flwr.app.config]
out = ""
"""


@pytest.mark.slow
def test_a_plain_flower_app_with_a_rule_and_a_codec_of_ours(flower: Any, tmp_path: Path) -> None:
    from tests.flower.conftest import ROOT, free_ports

    http, control = free_ports(2)
    flower.env |= {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    flower.app = tmp_path / "plain"
    flower.app.mkdir()
    (flower.app / "plain.py").write_text(APP)
    (flower.app / "pyproject.toml").write_text(PROJECT)
    out = tmp_path / "w.npy"
    try:
        done = flower.flwr(
            "run", ".", "local", "--stream", "--federation-config",
            "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2", "--run-config", f'out="{out}"',
        )  # fmt: skip
    finally:
        flower.end_superlink(control)
    assert out.exists(), f"{done.stdout[-3000:]}{done.stderr[-2000:]}"
    assert np.abs(np.load(out) - np.arange(8)).max() < 0.5, np.load(out)
