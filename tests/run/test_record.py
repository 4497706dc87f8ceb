"""What a run leaves behind: metrics.jsonl line by line, partition.json, run.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt.engine import record as engine_record

Small = Callable[..., dict[str, Any]]
Record = Callable[[Path], list[dict[str, Any]]]

ALWAYS = {
    "exchange", "round", "program", "asked", "answered", "clients", "client_loss", "client_steps", "rejected",
    "train_loss", "bytes_up", "bytes_down", "seconds", "info", "elapsed",
}  # fmt: skip
SERVER = {"loss", "accuracy", "recall", "g_mean", "macro_f1"}
D = 64 * 8 + 8 + 8 * 10 + 10
HEADER = 12  # of a vector that is not compressed


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


@pytest.mark.parametrize(
    "changes, up, down",
    [
        # a vector up; the loss, the steps and the weight; the model and four numbers of sgd down
        ({}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D + 4 * 4),
        ({"aggregator": {"name": "trimmed_mean", "f": 1}}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D + 4 * 4),
        ({"executor": "serial"}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D + 4 * 4),
        ({"attack": [{"name": "alie", "count": 2}]}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D + 4 * 4),
        # the control variate goes with it, both ways
        ({"strategy.name": "scaffold"}, 2 * (HEADER + 4 * D) + 4 * 3, 2 * (HEADER + 4 * D) + 4 * 4),
        # mu is one number more
        ({"strategy.name": "fedprox"}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D + 4 * 5),
        # no local optimizer
        ({"strategy": {"name": "fedsgd"}, "optimizer": None}, HEADER + 4 * D + 4 * 3, HEADER + 4 * D),
        # a vector of one entry for the normaliser
        ({"strategy.name": "fednova"}, 2 * HEADER + 4 * D + 4 + 4 * 3, HEADER + 4 * D + 4 * 4),
        # only metrics go up, only the optimizer's numbers go down
        ({"strategy.name": "local_only"}, 4 * 3, 4 * 4),
        # only the last layer is learnt
        ({"model.trainable": ["3.*"]}, HEADER + 4 * 90 + 4 * 3, HEADER + 4 * 90 + 4 * 4),
    ],
)
def test_bytes_are_counted(changes: dict[str, Any], up: int, down: int, small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 2, **changes}), out=tmp_path)
    for line in raw(tmp_path):
        assert (line["bytes_up"], line["bytes_down"]) == (4 * up, 4 * down)


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
