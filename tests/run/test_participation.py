"""Selectors and head-counts in whole runs: with rules, attacks and codecs, over executors, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt.experiment import resume_run
from fedopt.registry import ConfigError
from tests.run.conftest import Small, lines_of

SELECTORS: dict[str, dict[str, Any]] = {
    "by_size": {},
    "pow_d": {"loss": "received"},
    "pow_d fresh": {"loss": "fresh", "d": 6},
    "delta": {},
    "fedcbs": {},
    "oort": {},
    "fedcor": {"warm_up": 2, "period": 3},
}
ISP = {"name": "isp", "start": 4, "warmup": 1, "period": 3, "subsets": 3, "least": 1}


def chosen(selector: str, count: Any = 3) -> dict[str, Any]:
    return {"name": selector.split()[0], **SELECTORS[selector], "count": count}


@pytest.mark.parametrize(
    "selector",
    [s if s in ("pow_d", "fedcor", "delta") else pytest.param(s, marks=pytest.mark.slow) for s in SELECTORS],
)
def test_every_selector_with_isp_goes_on_with_the_same_bits(small: Small, tmp_path: Path, selector: str) -> None:
    """Under an attack, a rule with a trial function, and Top-K with error feedback."""
    document = small(
        {
            "participation": chosen(selector, ISP),
            "data.trial_samples": 60,
            "aggregator": {"name": "bant"},
            "attack": [{"name": "sign_flip", "count": 2}],
            "compression": {"name": "topk", "share": 0.2, "feedback": "ef21"},
        }
    )
    whole = {**document, "run": {**document["run"], "out": str(tmp_path / "whole")}}
    assert fedopt.run(whole).status == "finished"
    fedopt.run({**document, "run": {**document["run"], "out": str(tmp_path / "part"), "rounds": 4}})
    resume_run(tmp_path / "part", ["run.rounds=9"])
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "part")
    searches = [line["info"]["search"] for line in lines_of(tmp_path / "whole") if "search" in line["info"]]
    assert any(search.get("tried") for search in searches)


@pytest.mark.parametrize("selector", ["pow_d", "pow_d fresh", "delta", "fedcor"])
def test_surveys_are_exchanges_of_their_own(small: Small, tmp_path: Path, selector: str) -> None:
    fedopt.run(small({"participation": chosen(selector), "run.out": str(tmp_path)}))
    lines = lines_of(tmp_path)
    surveys = [line for line in lines if line["program"].startswith("survey.")]
    trained = [line for line in lines if line["program"] == "train"]
    assert len(trained) == 9 and all(line["asked"] == 3 for line in trained)
    asked = {"pow_d": 0, "pow_d fresh": 9, "delta": 8}.get(selector)
    assert asked is None or len(surveys) == asked
    for line in surveys:
        assert "accuracy" not in line and 0 < line["bytes_up"] < 100 * line["asked"]
        if selector == "delta":  # the client has the model that it trained
            assert line["bytes_down"] < 100 * line["asked"] and line["clients"] == trained[line["round"] - 1]["clients"]
        else:
            assert line["bytes_down"] > 1000 * line["asked"]


def test_executors_choose_the_same_clients(small: Small, tmp_path: Path) -> None:
    for selector in ("pow_d fresh", "delta", "oort"):
        found = []
        for executor in ("serial", "stacked"):
            out = tmp_path / f"{selector} {executor}"
            participation = chosen(selector)
            fedopt.run(small({"participation": participation, "executor": {"name": executor}, "run.out": str(out)}))
            found.append([(line["program"], line["clients"]) for line in lines_of(out)])
        assert found[0] == found[1], selector


def test_clients_may_judge_the_candidates(small: Small, tmp_path: Path) -> None:
    count = {**ISP, "validation": "clients"}
    fedopt.run(small({"participation": {"name": "uniform", "count": count}, "run.out": str(tmp_path)}))
    lines = lines_of(tmp_path)
    assert [line["round"] for line in lines if "search" in line["info"]] == [2, 5, 8]
    surveys = [line for line in lines if line["program"] == "survey.loss"]
    assert len(surveys) > 6 and all(not line["info"] or "search" in line["info"] for line in surveys)


def test_warm_up_changes_the_local_epochs(small: Small, tmp_path: Path) -> None:
    count = {**ISP, "warmup": 3, "warmup_epochs": 2, "start": 3}
    document = small({"participation": {"name": "uniform", "count": count}, "data.trial_samples": 30})
    document["strategy"] = {"name": "fedavg", "batch_size": 8, "epochs": 1}
    fedopt.run({**document, "run": {**document["run"], "out": str(tmp_path)}})
    one = {client: 0 for client in range(8)}
    lines = lines_of(tmp_path)
    for line in lines[3:]:
        one |= dict(zip(line["clients"], line["client_steps"], strict=True))
    for line in lines[:3]:
        for client, steps in zip(line["clients"], line["client_steps"], strict=True):
            assert not one[client] or steps == 2 * one[client]


@pytest.mark.parametrize(
    ("section", "where", "words"),
    [
        ({"name": "pow_e"}, "participation.name", "pow_d"),
        ({"name": "uniform", "count": {"name": "ips"}}, "participation.count.name", "isp"),
        ({"name": "uniform", "count": "isp"}, "participation.count.start", "20 clients are asked for, and there are 8"),
        ({"name": "uniform", "count": ISP}, "data.trial_samples", "500"),
        ({"name": "uniform", "count": {**ISP, "periode": 3}}, "participation.count.periode", "period"),
        ({"name": "uniform", "count": 3, "fraction": 0.5}, "participation", "not both"),
    ],
)
def test_bad_sections(small: Small, section: dict[str, Any], where: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        fedopt.run(small({"participation": section}), out=tmp_path)
    assert refused.value.where == where
