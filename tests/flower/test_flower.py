"""The Flower apps: in Flower's simulation, on SuperNodes by Flower's messages, and over the link, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedopt[flower]'")

METHODS = {
    "scaffold": ("strategy.name=scaffold", "participation.count=2"),
    "attack": (
        "participation.count=3",
        "attack=[{name='gaussian',sigma=0.1,around='own',clients=[1]}]",
    ),
    "topk": (
        "participation.count=2",
        "compression={name='topk',share=0.1,feedback='ef21'}",
    ),
    "isp": (
        "participation={name='uniform',count={name='isp',start=2,warmup=1,period=2,pool_factor=1.5}}",
        "data.trial_samples=100",
    ),
}


def compared(out: Path, wanted: Path) -> None:
    assert (out / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (out, wanted)
    ]
    for one, other in zip(*records, strict=True):
        for key in other.keys() - {"seconds", "elapsed"}:
            assert one[key] == other[key], key


@pytest.mark.slow
def test_over_the_link(flower: Any, simulated: Any, tmp_path: Path) -> None:
    """With TLS and registered keys; one federation, one experiment after another."""
    flower.deploy()
    for name, changes in METHODS.items():
        out = flower.run("test", tmp_path / name, changes, **flower.tls())
        compared(out, simulated(changes))
        log = (out / "server.log").read_text()
        assert "'joined': 3" in log and "refused" not in log and "invited again" not in log


@pytest.mark.slow
def test_by_messages(flower: Any, simulated: Any, tmp_path: Path) -> None:
    """The same, by Flower's messages alone."""
    flower.deploy()
    for name, changes in METHODS.items():
        out = flower.run("test", tmp_path / name, changes, executor="flower")
        compared(out, simulated(changes))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_in_the_simulation_of_flower(method: str, flower: Any, simulated: Any, tmp_path: Path) -> None:
    from tests.flower.conftest import CLIENTS, free_ports

    http, control = free_ports(2)
    flower.env |= {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
    }
    federation = f"num-supernodes={CLIENTS} client-resources-num-cpus=1 init-args-num-cpus=2"
    try:
        out = flower.run(
            "local", tmp_path / "run", METHODS[method], "--federation-config", federation, executor="flower"
        )
    finally:
        flower.end_superlink(control)
    compared(out, simulated(METHODS[method]))
