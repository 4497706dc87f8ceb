"""Compressed runs: every executor, stopped and resumed, with rejected answers, and what a config may not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fedopt
from fedopt.compression import feedback

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]

CODECS: dict[str, dict[str, Any]] = {
    "none": {"name": "qsgd", "levels": 4},
    "ef14": {"name": "topk", "share": 0.05},
    "ef21": {"name": "topk", "share": 0.05},
    "ef21_momentum": {"name": "sign"},
    "diana": {"name": "qsgd", "levels": 4},
    "marina": {"name": "randk", "share": 0.2},
    "dasha": {"name": "permk", "n": 4},
    "dgc": {"name": "threshold", "least": 0.3},
}


def compressed(name: str, **more: Any) -> dict[str, Any]:
    return {"compression": {**CODECS[name], "feedback": name, **more}}


def model(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def test_every_memory_is_tried() -> None:
    assert set(CODECS) == set(feedback.registry.names())


@pytest.mark.parametrize("name", CODECS)
def test_stacked_and_serial_give_the_same(name: str, small: Small, tmp_path: Path) -> None:
    for executor in ("serial", "stacked"):
        document = small({**compressed(name), "executor": executor, "run.dtype": "float64"})
        fedopt.run(document, out=tmp_path / executor)
    one, other = model(tmp_path / "serial"), model(tmp_path / "stacked")
    for key, value in one.items():
        # codes are float32, so a difference of rounding in float64 may become one of float32
        torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_stopped_and_resumed_equals_uninterrupted(name: str, small: Small, same: Same, tmp_path: Path) -> None:
    document = small(compressed(name, down={"name": "topk", "share": 0.1}))
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[lambda line: line["exchange"] >= 3])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("name", ["ef21", *(pytest.param(n, marks=pytest.mark.slow) for n in ("marina", "dasha"))])
def test_ray_gives_what_serial_gives(name: str, small: Small, same: Same, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fedopt[ray]'")
    document = small({**compressed(name), "run.rounds": 3})
    fedopt.run({**document, "executor": "serial"}, out=tmp_path / "serial")
    over = {"name": "ray", "workers": 2, "inner": "serial"}
    fedopt.run({**document, "executor": over}, out=tmp_path / "ray")
    one, other = model(tmp_path / "serial"), model(tmp_path / "ray")
    assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("serial", "ray")]
    assert [json.loads(line)["bytes_up"] for line in lines[0]] == [json.loads(line)["bytes_up"] for line in lines[1]]


def test_powersgd_keeps_its_factors_with_the_client(small: Small, same: Same, tmp_path: Path) -> None:
    document = small({"compression": {"name": "powersgd", "rank": 1, "feedback": "ef14"}})
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[lambda line: line["exchange"] >= 2])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")
    cold = fedopt.run(small({"compression": {"name": "powersgd", "rank": 1, "warm": False}}), out=tmp_path / "cold")
    assert cold.status == "finished"


def test_an_exact_codec_changes_nothing_but_the_record(small: Small, tmp_path: Path) -> None:
    fedopt.run(small(), out=tmp_path / "plain")
    for name in ("ef14", "ef21", "marina", "dasha"):
        fedopt.run(small({"compression": {"name": "none", "feedback": name}}), out=tmp_path / name)
        for key, value in model(tmp_path / "plain").items():
            torch.testing.assert_close(model(tmp_path / name)[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rule", [{"name": "krum", "f": 1, "m": 2}, {"name": "trimmed_mean", "f": 1}, {"name": "median"}]
)
def test_every_rule_sees_the_rows_that_come_out(rule: dict[str, Any], small: Small, tmp_path: Path) -> None:
    changes = {**compressed("ef21"), "aggregator": rule, "participation": {"name": "uniform", "count": 6}}
    result = fedopt.run(small({**changes, "attack": [{"name": "sign_flip", "clients": [1]}]}), out=tmp_path)
    assert result.status == "finished" and all(line["answered"] == 6 for line in result.history)


def test_other_vectors_go_through_the_codec_where_they_are_named(small: Small, tmp_path: Path) -> None:
    sizes = []
    for vectors in (["delta"], ["delta", "control"]):
        document = small({"strategy.name": "scaffold", **compressed("ef14", vectors=vectors)})
        sizes.append(fedopt.run(document, out=tmp_path / str(len(vectors))).history[-1]["bytes_up"])
    assert sizes[1] < sizes[0] / 5


def test_answers_that_are_not_finite_leave_no_trace_in_a_memory(small: Small, tmp_path: Path) -> None:
    result = fedopt.run(
        small({**compressed("ef21"), "optimizer.lr": 1e38, "strategy.steps": 3, "run.rounds": 3}), out=tmp_path
    )
    for line in result.history:
        for rejected in line["rejected"]:
            assert "of its delta are NaN or Inf" in rejected["reason"]
    assert any(line["rejected"] for line in result.history)


def test_a_memory_without_its_guarantee_is_said_to_be(
    small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fedopt.run(small({"compression": {"name": "topk", "share": 0.1}, "run.rounds": 1}), out=tmp_path / "plain")
    fedopt.run(small({**compressed("ef21"), "run.rounds": 1}), out=tmp_path / "lawful")
    (warning,) = [r.getMessage() for r in caplog.records if "guarantee" in r.getMessage()]
    assert "feedback 'none'" in warning and "'topk', a contraction" in warning


@pytest.mark.parametrize(
    ("compression", "where", "words"),
    [
        ({"name": "topk"}, "compression", "give one of count and share"),
        ({"name": "topk", "share": 0.1, "feedback": "dianna"}, "compression.feedback.name", "Did you mean 'diana'"),
        ({"name": "topk", "share": 0.1, "vectors": ["gradient"]}, "compression.vectors", "sends no vector 'gradient'"),
        ({"name": "topk", "share": 0.1, "down": "permk"}, "compression.down", "n: missing"),
        ({"name": "none", "down": {"name": "permk", "n": 4}}, "compression.down.name", "'permk' is for clients"),
        ({"name": "sketch", "columns": 0}, "compression.columns", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be(compression: dict[str, Any], where: str, words: str, small: Small, tmp_path: Path) -> None:
    with pytest.raises(fedopt.FedoptError) as refused:
        fedopt.run(small({"compression": compression}), out=tmp_path)
    assert where in str(refused.value) and words in str(refused.value)
