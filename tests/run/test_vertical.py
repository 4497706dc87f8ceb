"""Experiments over columns, from their config to their folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedopt
from fedopt import config as configs
from fedopt import setup as setups
from fedopt.data import Dataset
from fedopt.registry import ConfigError
from tests.run.conftest import changed

Same = Callable[[Path, Path], None]

VERTICAL: dict[str, Any] = {
    "run": {"rounds": 6, "checkpoint_every": 4, "evaluate_every": 2, "dtype": "float64"},
    "data": {"name": "digits", "clients": 3, "vertical": "even"},
    "model": {"name": "logistic", "bias": False},
    "strategy": {"name": "egvfl", "loss": "softmax", "l2": 1e-2},
    "executor": {"name": "serial"},
}
SPLIT = {"name": "split_learning", "batch_size": 32, "lr": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "egvfl": {},
    "reference": {"strategy.name": "egvfl_reference", "compression": {"name": "randk", "share": 0.1}},
    "descent": {"strategy": {"name": "vertical_gd", "loss": "squares", "acceleration": "nesterov"}},
    "split": {"strategy": SPLIT, "model": {"name": "mlp", "hidden": [8]}},
    "top network": {"strategy": {**SPLIT, "width": 6, "hidden": 8}},
    "missing people": {"data.vertical": {"name": "by_size", "alpha": 1.0, "missing": 0.1, "alignment": "hashed"}},
    "stacked": {"executor.name": "stacked"},
}


def document(changes: dict[str, Any]) -> dict[str, Any]:
    return changed(copy.deepcopy(VERTICAL), changes)


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_equals_uninterrupted(name: str, same: Same, tmp_path: Path) -> None:
    described = document(CASES[name])
    whole = fedopt.run(described, out=tmp_path / "whole")
    fedopt.run(described, out=tmp_path / "part", callbacks=[lambda line: line["exchange"] >= 6])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")
    assert whole.model is None and whole.status == "finished"
    scored = [line for line in whole.history if "objective" in line]
    assert [line["round"] for line in scored] == [2, 4, 6]
    assert all({"loss", "accuracy", "macro_f1", "recall"} <= line.keys() for line in scored)
    if name != "top network":  # a few batches of it do not tell
        assert scored[-1]["objective"] < scored[0]["objective"]
    held = json.loads((tmp_path / "whole" / "partition.json").read_text())
    assert all(len(one.get("labels", [0])) == 1 for one in held["clients"]), "parties have no labels to be counted"


def test_the_objective_is_that_of_the_whole_problem(tmp_path: Path) -> None:
    result = fedopt.run(document({}), out=tmp_path / "run")
    last = result.history[-1]
    assert last["info"]["objective"] == pytest.approx(last["objective"])


def test_the_right_answers_are_found(tmp_path: Path) -> None:
    accuracies = {}
    for name in ("egvfl", "split"):
        described = document({**CASES[name], "run.rounds": 150, "run.evaluate_every": 150})
        if name == "egvfl":
            described["strategy"]["l2"] = 1e-4
        accuracies[name] = fedopt.run(described, out=tmp_path / name).final["accuracy"]
    assert accuracies["egvfl"] > 0.9 and accuracies["split"] > 0.75, accuracies


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.clients": None}, r"data\.clients: the number of parties is needed"),
        ({"model.loss": "squares"}, r"model\.loss: the label owner has the loss; set strategy\.loss"),
        ({"strategy": {"name": "fedavg"}, "optimizer": {"name": "sgd", "lr": 0.1}}, r"data\.vertical: .*not columns"),
        ({"strategy.loss": "logistic"}, r"model\.loss: 'logistic' needs two classes, the data have 10"),
        ({"data.valid_share": 0.1}, r"data\.valid_share: parties without labels"),
        ({"data.clients": 65}, r"data\.clients: .*65"),
        ({"model.bias": True, "strategy.name": "egvfl_reference"}, r"model: linear bottom networks are needed"),
        ({"model": {"name": "mlp"}}, r"strategy\.step: .*give one"),
        ({"strategy.form": "dual"}, r"strategy\.form: 'dual' needs a loss of single outputs; 'softmax' is none"),
        ({"data.vertical": {"name": "even", "missing": 0.2}}, r"data\.vertical\.alignment: 'given' needs"),
        ({"data.vertical": "evn"}, r"data\.vertical\.name: .*Did you mean 'even'"),
        ({"strategy": {**SPLIT, "epochs": 2}}, r"strategy\.epochs: batches are drawn one by one"),
    ],
)
def test_bad_input_by_message(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fedopt.run(document(changes), out=tmp_path / "run")


def test_features_that_are_not_numbers(tmp_path: Path) -> None:
    x = torch.randn(30, 6)
    x[4, 5] = torch.nan
    data = Dataset(x, torch.arange(30) % 2, ("a", "b"))
    described = configs.load(document({"strategy.loss": "squares"}))
    with pytest.raises(ConfigError, match=r"column 5, which party 2 holds, has 1 numbers that are NaN"):
        setups.build(described, data=data)
