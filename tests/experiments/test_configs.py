"""The configs of the repository, run to their end, reach what they are there to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import fedopt

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Data = Callable[[str], Path]


def test_quickstart(tmp_path: Path) -> None:
    result = fedopt.run(CONFIGS / "quickstart.toml", out=tmp_path / "run")
    assert result.history[-1]["accuracy"] >= 0.93
    assert result.history[-1]["elapsed"] < 120
    assert result.setup.problem.clients == 50
    assert {line["asked"] for line in result.history} == {10}


@pytest.mark.slow
def test_heart_beats_of_patients_never_seen(tmp_path: Path, fedopt_data: Data) -> None:
    fedopt_data("mitdb")
    result = fedopt.run(CONFIGS / "ecg_patients.toml", out=tmp_path / "run")
    last = result.history[-1]
    assert result.setup.problem.clients == 17
    assert last["recall"]["V"] >= 0.5
    assert last["recall"]["Q"] is None, "no held-out patient has such a beat"
    assert 0.0 <= last["g_mean"] <= 1.0 and last["macro_f1"] > 0.4
    assert last["elapsed"] < 15 * 60


@pytest.mark.slow
def test_mnist(tmp_path: Path, fedopt_data: Data) -> None:
    fedopt_data("mnist10k")
    result = fedopt.run(CONFIGS / "mnist.toml", out=tmp_path / "run")
    assert result.history[-1]["accuracy"] >= 0.94


@pytest.mark.slow
def test_shakespeare(tmp_path: Path, fedopt_data: Data) -> None:
    fedopt_data("shakespeare")
    result = fedopt.run(CONFIGS / "shakespeare.toml", out=tmp_path / "run")
    scores = [line["accuracy"] for line in result.history if "accuracy" in line]
    assert scores[-1] > 0.40 > scores[0]
