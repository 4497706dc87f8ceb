"""Messages for what a config can get wrong."""

from __future__ import annotations

from typing import Any

import pytest

from fedopt.optimizers import at_server, build
from fedopt.registry import ConfigError


@pytest.mark.parametrize(
    ("name", "options", "where", "message"),
    [
        ("sgd", {"lr": -0.1}, "optimizer.lr", "a number >= 0 is needed; -0.1 was given"),
        ("sgd", {"lr": float("nan")}, "optimizer.lr", "nan was given"),
        ("sgd", {"lr": float("inf")}, "optimizer.lr", "inf was given"),
        ("sgd", {"lr": 0.1, "momentum": 1.0}, "optimizer.momentum", "0 <= momentum < 1 is needed; 1.0 was given"),
        ("adam", {"beta2": 1.5}, "optimizer.beta2", "0 <= beta2 < 1 is needed; 1.5 was given"),
        ("yogi", {"initial_accumulator": -1.0}, "optimizer.initial_accumulator", "-1.0 was given"),
        (
            "sgd",
            {"lr": {"schedule": "linear", "start": 0.1, "end": -0.1, "rounds": 50}},
            "optimizer.lr",
            "-0.1 was given in round 100",
        ),
        (
            "sgd",
            {"lr": {"schedule": "exponential", "start": 0.1, "decay": 2.0}},
            "optimizer.lr",
            "inf was given in round 10000",
        ),
        ("sgd", {"lr": 0.1, "nesterov": True}, "optimizer", "nesterov needs momentum > 0 and dampening = 0"),
        (
            "sgd",
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
            "optimizer",
            "dampening = 0.1 were given",
        ),
        ("sgd", {}, "optimizer.lr", "missing"),
        ("sgd", {"lr": 0.1, "momentun": 0.9}, "optimizer.momentun", "Did you mean 'momentum'"),
        ("adan", {}, "optimizer.name", "Did you mean 'adam'"),
        ("sgd", {"lr": "0.1"}, "optimizer.lr", "a number or a table"),
    ],
)
def test_refused(name: str, options: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        build(name, options)
    assert caught.value.where == where
    assert message in str(caught.value)


def test_where_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"^server\.lr: "):
        build("adam", {"lr": -1}, where="server")


def test_a_server_has_an_aggregate_and_nothing_else() -> None:
    with pytest.raises(
        ConfigError, match=r"strategy\.server\.name: schedule_free evaluates gradients or losses at points"
    ):
        at_server(build("schedule_free", {}), "strategy.server")
    options = {"of": {"name": "sgd", "lr": 0.1}, "target": 0.1, "steps": 10}
    warmup = build("warmup", options)
    with pytest.raises(ConfigError, match=r"server\.name: warmup evaluates"):
        at_server(warmup, "server")
    assert at_server(warmup, "server", frozenset({"value"})) is warmup
    muon = build("muon", {})
    assert at_server(muon, "strategy.server") is muon
