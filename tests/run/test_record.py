"""What a run leaves behind: metrics.jsonl line by line, partition.json, run.json."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import fedopt
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.compressed import Compressed
from fedopt.engine import record as engine_record
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.types import Batches, Named
from fedopt.wire.messages import Written, write_down, write_up

Small = Callable[..., dict[str, Any]]
Record = Callable[[Path], list[dict[str, Any]]]

ALWAYS = {
    "exchange", "round", "program", "asked", "answered", "clients", "client_loss", "client_steps", "rejected",
    "train_loss", "bytes_up", "bytes_down", "seconds", "info", "elapsed",
}  # fmt: skip
SERVER = {"loss", "accuracy", "recall", "g_mean", "macro_f1"}
D = 64 * 8 + 8 + 8 * 10 + 10


def every_key(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}{key}"
            yield from every_key(inner, f"{path}{key}.")
    if isinstance(value, list):
        for inner in value:
            yield from every_key(inner, path)


def raw(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_keys_of_a_line(small: Small, tmp_path: Path) -> None:
    changes = {"run.evaluate_every": 2, "attack": [{"name": "sign_flip", "clients": [1], "scale": 1e39}]}
    fedopt.run(small(changes), out=tmp_path)
    lines = raw(tmp_path)
    assert len(lines) == 9
    for line in lines:
        evaluated = line["round"] % 2 == 0 or line["round"] == 9
        on_clients = line["round"] in (4, 8, 9)
        expected = ALWAYS | (SERVER if evaluated else set()) | ({"client_eval"} if on_clients else set())
        assert set(line) == expected
        assert set(line["seconds"]) == {"plan", "map", "absorb", "evaluate"}
        assert all(value >= 0 for value in line["seconds"].values())
        assert line["asked"] == 4 and line["answered"] == len(line["clients"]) == 4 - len(line["rejected"])
        assert len(line["client_loss"]) == len(line["client_steps"]) == line["answered"]
        assert line["client_steps"] == [2] * line["answered"]
        assert line["train_loss"] == pytest.approx(sum(line["client_loss"]) / line["answered"])
        assert [set(rejected) for rejected in line["rejected"]] in ([], [{"client", "reason"}])
        if evaluated:
            assert set(line["recall"]) == set("0123456789")
        if on_clients:
            assert set(line["client_eval"]) == {"clients", "loss", "score", "score_p10", "score_p90"}
            assert line["client_eval"]["score_p10"] <= line["client_eval"]["score"] <= line["client_eval"]["score_p90"]
    assert any(line["rejected"] for line in lines) and not all(line["rejected"] for line in lines)
    assert [line["elapsed"] for line in lines] == sorted(line["elapsed"] for line in lines)


@pytest.mark.parametrize("strategy", ["fedavg", "ditto", "local_only"])
def test_accuracy_is_the_name_of_one_thing(strategy: str, small: Small, tmp_path: Path) -> None:
    document = small({"strategy.name": strategy, "run.rounds": 4})
    result = fedopt.run(document, out=tmp_path)
    for line in raw(tmp_path):
        named = [key for key in every_key(line) if "accuracy" in key.lower()]
        assert named == (["accuracy"] if strategy != "local_only" else [])
    assert [key for key in every_key(result.final) if "acc" in key] in (["accuracy"], [])
    for name in ("run.json", "partition.json"):
        document = json.loads((tmp_path / name).read_text())
        assert not [key for key in every_key(document) if "accuracy" in key]


SGD = ("dampening", "lr", "momentum", "weight_decay")


def vector(entries: int) -> Written:
    return Written("", entries, bytes(4 * entries))


@pytest.mark.parametrize(
    ("changes", "up", "down", "numbers"),
    [
        ({}, {"delta": D}, {"params": D}, SGD),
        ({"aggregator": {"name": "trimmed_mean", "f": 1}}, {"delta": D}, {"params": D}, SGD),
        ({"executor": "serial"}, {"delta": D}, {"params": D}, SGD),
        ({"attack": [{"name": "alie", "count": 2}]}, {"delta": D}, {"params": D}, SGD),
        # the control variate goes with it, both ways
        ({"strategy.name": "scaffold"}, {"delta": D, "control": D}, {"params": D, "control": D}, SGD),
        ({"strategy.name": "fedprox"}, {"delta": D}, {"params": D}, (*SGD, "mu")),
        # no local optimizer
        ({"strategy": {"name": "fedsgd"}, "optimizer": None}, {"delta": D}, {"params": D}, ()),
        # a vector of one entry for the normaliser
        ({"strategy.name": "fednova"}, {"delta": D, "steps": 1}, {"params": D}, SGD),
        # only metrics go up, only the optimizer's numbers go down
        ({"strategy.name": "local_only"}, {}, {}, SGD),
        # only the last layer is learnt
        ({"model.trainable": ["3.*"]}, {"delta": 90}, {"params": 90}, SGD),
    ],
)
def test_bytes_are_those_of_the_messages(
    changes: dict[str, Any], up: dict[str, int], down: dict[str, int], numbers: tuple[str, ...], small: Small,
    tmp_path: Path,
) -> None:  # fmt: skip
    fedopt.run(small({"run.rounds": 2, **changes}), out=tmp_path)
    walk = Batches(size=1, epochs=1)  # all numbers of a walk have the same length
    sent = {name: 0.0 for name in (f"optimizer.{n}" if n in SGD else n for n in numbers)}
    task = write_down(0, 0, 0, "train", {name: vector(entries) for name, entries in down.items()}, sent, walk)
    answer = write_up(0, 0, {n: vector(entries) for n, entries in up.items()}, {"loss": 0.0, "steps": 0}, 1.0)
    for line in raw(tmp_path):
        assert (line["bytes_up"], line["bytes_down"]) == (4 * len(answer), 4 * len(task))


@pytest.mark.parametrize("executor", ["stacked", "serial"])
@pytest.mark.parametrize(
    "compression",
    [
        {"name": "topk", "share": 0.05, "feedback": "ef21"},
        {"name": "qsgd", "levels": 4, "feedback": "diana"},
        {"name": "compose", "first": {"name": "topk", "share": 0.1}, "then": {"name": "natural"}, "feedback": "ef14"},
        {"name": "permk", "n": 4},
    ],
)
def test_bytes_of_compressed_answers_are_those_of_their_messages(
    compression: dict[str, Any], executor: str, small: Small, tmp_path: Path
) -> None:
    """Every code that a client makes is encoded, and the answer with it written."""
    document = small({"run.rounds": 3, "compression": compression, "executor": executor})
    setup = setups.build(configs.load(document))
    assert isinstance(setup.strategy, Compressed)
    bodies: list[bytes] = []

    def compress(x: Tensor, key: Tensor, **offers: Any) -> Named:
        bodies.append(setup.codec.encode(x, key, **offers))
        return setup.codec.compress(x, key, **offers)

    spied = replace(setup.strategy, codec=setup.codec._replace(compress=compress))
    serial = Serial()
    parts = (setup.problem, spied, serial, setup.adversary)
    programs = spied.programs(setup.problem)
    memory = ClientMemory(programs.memory, setup.problem.clients)
    state = spied.init(setup.problem, keys.fold(setup.key, "init"))
    steps = list(itertools.islice(exchanges(*parts, memory, state, setup.key), 3))
    fedopt.run(document, out=tmp_path)
    for number, (line, step) in enumerate(zip(raw(tmp_path), steps, strict=True)):
        metrics = {name: 0.0 for name in step.replies.metrics if not name.startswith("compression.")}
        sizes = [
            len(write_up(0, 0, {"delta": Written(setup.codec.name, setup.problem.d, body)}, metrics, 1.0))
            for body in bodies[4 * number : 4 * number + 4]
        ]
        assert line["bytes_up"] == sum(sizes)
        assert line.get("client_bytes_up", sizes) == sizes


def test_the_model_is_sent_as_its_change(small: Small, tmp_path: Path) -> None:
    down = {"name": "topk", "count": 10}
    changes = {"run.rounds": 4, "compression.down": down, "participation": {"name": "uniform", "count": 3}}
    fedopt.run(small(changes), out=tmp_path)
    whole, before = 4 * D, set()
    for line in raw(tmp_path):
        assert len(line["clients"]) == 3
        sizes = line.get("client_bytes_down", [line["bytes_down"] // 3] * 3)
        for client, size in zip(line["clients"], sizes, strict=True):
            assert (size < whole / 4) == (client in before), "who missed an exchange is sent the whole model"
        before = set(line["clients"])


def test_a_diverged_run_is_still_json(small: Small, record: Record, tmp_path: Path) -> None:
    """Weights of 1e25 are finite; what two layers of them make of a sample is not."""
    result = fedopt.run(small({"optimizer.lr": 1e25, "strategy.steps": 1, "run.rounds": 3}), out=tmp_path)
    lines = record(tmp_path)  # which refuses NaN and Infinity
    assert result.status == "finished" and len(lines) == 3
    assert lines[0]["answered"] == 4 and lines[0]["loss"] is None and 0 <= lines[0]["accuracy"] <= 1


def test_values_that_json_has_not() -> None:
    import torch

    from fedopt.engine.record import finite

    values = {"a": float("nan"), "b": [float("inf"), 1.5, (2, -float("inf"))], 3: torch.tensor([1.0, float("nan")])}
    assert finite(values) == {"a": None, "b": [None, 1.5, [2, None]], "3": [1.0, None]}


@pytest.mark.parametrize(
    "losses, stop, reason",
    [
        ([3.0, None, None], {"metric": "loss", "patience": 2}, "did not improve on 3 in 2 evaluations"),
        ([3.0, None, 2.0], {"metric": "loss", "patience": 2}, ""),
        ([3.0, 2.95, 2.9], {"metric": "loss", "patience": 2, "min_delta": 0.2}, "did not improve on 3 in 2"),
        ([3.0, 2.95, 2.7], {"metric": "loss", "patience": 2, "min_delta": 0.2}, ""),
        ([3.0, 1.0, 2.0], {"metric": "loss", "target": 1.0}, ""),
        ([3.0, 2.0, 1.0], {"metric": "loss", "target": 1.0}, "loss 1 reached the target 1"),
        ([None], {"metric": "loss", "target": 1.0}, ""),
        ([], {"metric": "loss", "patience": 1}, ""),
    ],
)
def test_early_stopping(losses: list[float | None], stop: dict[str, Any], reason: str) -> None:
    from fedopt.config import Stop
    from fedopt.execution import early_stop

    lines: list[dict[str, Any]] = [{"loss": loss} for loss in losses]
    lines.insert(1, {"exchange": 1})  # without an evaluation
    found = early_stop(Stop(**stop), lines)
    assert (reason in found) if reason else found == ""
    mirrored: list[dict[str, Any]] = [{"accuracy": None if loss is None else -loss} for loss in losses]
    turned = {**stop, "metric": "accuracy"} | ({"target": -stop["target"]} if "target" in stop else {})
    assert bool(early_stop(Stop(**turned), mirrored)) == bool(reason)


def test_partition_and_run_json(small: Small, tmp_path: Path) -> None:
    result = fedopt.run(small({"attack": [{"name": "label_flip", "clients": [6, 2]}], "run.rounds": 1}), out=tmp_path)
    partition = json.loads((tmp_path / "partition.json").read_text())
    assert set(partition) == {"class_names", "clients", "attackers", "attacks", "server"}
    assert [(a["name"], a["clients"], a["first_round"]) for a in partition["attacks"]] == [("label_flip", [2, 6], 0)]
    assert partition["class_names"] == list("0123456789") and partition["attackers"] == [2, 6]
    splits = result.setup.problem.data.splits
    for client, entry in enumerate(partition["clients"]):
        assert set(entry) == {"client", "name", "train", "valid", "labels"} and entry["client"] == client
        assert entry["train"] == sum(entry["labels"]) == int(splits["train"].sizes[client])
        assert entry["valid"] == int(splits["valid"].sizes[client])
    total = sum(entry["train"] + entry["valid"] for entry in partition["clients"]) + partition["server"]["test"]
    assert total == 1797
    about = json.loads((tmp_path / "run.json").read_text())
    assert set(about) == {
        "name", "status", "reason", "fedopt", "torch", "python", "started", "executor", "parameters", "rounds",
        "strategy", "portable",
    }  # fmt: skip
    assert (about["status"], about["parameters"], about["rounds"], about["portable"]) == ("finished", D, 1, True)


def test_partition_of_a_large_population(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = small(
        {
            "attack": [{"name": "sign_flip", "clients": list(range(1, 60))}],
            "run.rounds": 1,
            "run.evaluate_clients_every": 0,
            "data.clients": 331,
            "data.partition": {"name": "quantity", "alpha": 2.0},
        }
    )
    fedopt.run(document, out=tmp_path / "whole")
    for name, number in (("LISTED", 330), ("SHOWN", 31), ("ATTACKERS_SHOWN", 5)):
        monkeypatch.setattr(engine_record, name, number)
    fedopt.run(document, out=tmp_path / "part")
    whole, part = (json.loads((tmp_path / name / "partition.json").read_text()) for name in ("whole", "part"))
    population = part.pop("population")
    assert "population" not in whole
    ids = [entry["client"] for entry in part["clients"]]
    assert {*range(0, 331, 11)} <= set(ids) and ids == sorted(set(ids))
    assert 31 + 4 <= len(ids) <= 31 + 10 and len(set(ids) & set(range(1, 60))) >= 9
    assert part.pop("clients") == [whole["clients"][i] for i in ids]
    everybody = whole.pop("clients")
    (some,), (every,) = part.pop("attacks"), whole.pop("attacks")
    assert some == {**every, "clients": [i for i in every["clients"] if i in ids]}
    assert part == whole
    assert set(population) == {"clients", "train", "valid"} and population["clients"] == 331
    for split in ("train", "valid"):
        sizes = sorted(entry[split] for entry in everybody)
        found = population[split]
        assert found["samples"] == sum(sizes) == sum(found["labels"])
        for name, share in (("least", 0), ("p10", 34), ("p25", 83), ("median", 166), ("p75", 249), ("p90", 298)):
            assert found[name] == sizes[max(share - 1, 0)], name
        assert found["most"] == sizes[-1]
    labels = [sum(entry["labels"][c] for entry in everybody) for c in range(10)]
    assert population["train"]["labels"] == labels


def test_what_cannot_be_stacked_is_said(small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = small({"model": {"name": "resnet18", "width": 2, "norm": "batch"}, "run.rounds": 1, "strategy.steps": 1})
    fedopt.run(document, out=tmp_path)
    reason = json.loads((tmp_path / "run.json").read_text())["executor"]["reason"]
    assert "train" in reason and "BatchNorm" in reason
    assert any("cannot be stacked" in line.getMessage() for line in caplog.records)
