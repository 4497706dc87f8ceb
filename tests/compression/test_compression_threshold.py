"""Thresholds against a loop."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)


def loop(x: list[float], least: float, relative: bool) -> list[float]:
    bound = least * max(abs(value) for value in x) if relative else least
    return [value if abs(value) >= bound else 0.0 for value in x]


def back(x: torch.Tensor, least: float, relative: bool = True) -> list[float]:
    codec = build("threshold", {"least": least, "relative": relative})
    found: list[float] = codec.decode(codec.encode(x, KEY), x.numel()).tolist()
    return found


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        x = torch.tensor([draw.gauss(0, 1) for _ in range(draw.randint(1, 20))])
        relative = draw.random() < 0.5
        least = draw.random() * (1.0 if relative else 2.0) + 1e-9
        assert back(x, least, relative) == loop(x.tolist(), least, relative)


def test_what_is_at_the_threshold_is_kept() -> None:
    x = torch.tensor([0.5, -0.5, 0.49, 1.0, 0.0])
    assert back(x, 0.5) == back(x, 0.5, relative=False) == [0.5, -0.5, 0.0, 1.0, 0.0]


def test_the_payload_byte_by_byte() -> None:
    x = torch.tensor([0.25, 5.0, 0.0, 0.0, 0.5, -4.5, 0.0, 0.0])
    # gaps 1 and 3 with the Rice parameter 1: quotients "1" and "01", low bits 1 and 1
    wanted = bytes.fromhex("01 02000000 01 01000000 05 03 0000a040 000090c0")
    assert build("threshold", {"least": 0.9}).encode(x, KEY) == wanted
    assert build("threshold", {"least": 4.5, "relative": False}).encode(x, KEY) == wanted


def test_the_largest_entry_is_always_kept_and_so_the_stated_bound_holds() -> None:
    for seed in range(100):
        x = keys.normal(keys.root(seed), 10)
        assert back(x, 1.0) == [value if abs(value) == float(x.abs().max()) else 0.0 for value in x.tolist()]
        off = float((torch.tensor(back(x, 1.0)) - x).square().sum())
        assert off <= (1 - 1 / 10) * float(x.square().sum())


def test_all_may_be_below_a_threshold_of_its_own() -> None:
    assert back(torch.tensor([1.0, -2.0]), 3.0, relative=False) == [0.0, 0.0]
    assert back(torch.zeros(3), 0.5) == [0.0, 0.0, 0.0]


def test_a_relative_one_is_a_contraction() -> None:
    relative, absolute = build("threshold", {"least": 0.5}), build("threshold", {"least": 0.5, "relative": False})
    assert (relative.kind, relative.error(10)) == ("contraction", 1 - 1 / 10)
    assert (absolute.kind, absolute.error(10)) == ("biased", float("inf"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"compression\.least: missing"),
        (
            {"least": 1.5},
            r"compression: threshold: least is a share of the largest magnitude, 1\.5 is above 1; or relative = false",
        ),
        ({"least": 0.0}, r"compression\.least: should be greater than 0"),
        ({"least": float("inf"), "relative": False}, r"compression\.least: should be a finite number"),
        ({"leats": 0.5}, r"compression\.leats: unknown option\. Did you mean 'least'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("threshold", options)


def test_an_absolute_threshold_may_be_above_one() -> None:
    assert back(torch.tensor([1.0, 2.0]), 1.5, relative=False) == [0.0, 2.0]
