"""Short runs with stored numbers: a change of one is a change of what fedopt computes, and belongs in the changelog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedopt

BASE: dict[str, Any] = {
    "run": {"rounds": 6, "dtype": "float64", "seed": 7},
    "data": {"name": "digits", "clients": 12, "partition": {"name": "dirichlet", "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": [16]},
    "strategy": {"name": "fedavg", "batch_size": 16, "epochs": 2},
    "participation": {"name": "uniform", "count": 7},
    "optimizer": {"name": "sgd", "lr": 0.2},
}

RUNS: dict[str, list[str]] = {
    "fedavg": [],
    "momentum kept": ["optimizer.momentum=0.9", "strategy.optimizer_state=kept", "optimizer.lr=0.05"],
    "adam at the server": ['strategy.server={name="adam", lr=0.03, bias_correction=false, eps=1e-3}'],
    "scaffold": ["strategy=scaffold"],
    "krum under alie": ["aggregator=krum", "aggregator.f=2", "aggregator.m=3", 'attack=[{name="alie", count=2}]'],
}

GOLDEN: dict[str, tuple[float, float]] = {
    "fedavg": (0.8695770852201711, 0.7855153203342619),
    "momentum kept": (0.49833930853453673, 0.883008356545961),
    "adam at the server": (0.4792300611066241, 0.8384401114206128),
    "scaffold": (0.8117358924328574, 0.8161559888579387),
    "krum under alie": (1.3941315646380643, 0.46518105849582175),
}


@pytest.mark.parametrize("name", RUNS)
def test_golden(name: str, tmp_path: Path) -> None:
    last = fedopt.run(BASE, RUNS[name], out=tmp_path / "run").history[-1]
    loss, accuracy = GOLDEN[name]
    assert last["loss"] == pytest.approx(loss, rel=1e-7)
    assert last["accuracy"] == accuracy
