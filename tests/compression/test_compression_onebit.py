"""1-bit SGD against a loop, and its two values as the best ones."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)
CODEC = build("onebit", {})


def loop(x: list[float]) -> list[float]:
    below, above = [v for v in x if v < 0], [v for v in x if v >= 0]
    return [sum(below) / len(below) if v < 0 else sum(above) / len(above) for v in x]


def back(x: torch.Tensor) -> torch.Tensor:
    return CODEC.decode(CODEC.encode(x, KEY), x.numel())


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        shift = draw.choice([-3.0, 0.0, 0.0, 3.0])  # nearly all on one side, too
        x = torch.tensor([draw.gauss(shift, 1) for _ in range(draw.randint(1, 20))])
        torch.testing.assert_close(back(x), torch.tensor(loop(x.tolist())), rtol=1e-5, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    # the mean of those that are not negative first, 0 among them; then a bit for each, least significant first
    x = torch.tensor([-1.0, 2.0, 0.0, 4.0, -3.0, 0.0, 3.0, 3.0, -5.0])
    assert CODEC.encode(x, KEY) == bytes.fromhex("00000040 000040c0 1101")


@pytest.mark.parametrize("d", [1, 8, 9, 1000])
def test_one_bit_for_each_entry_and_two_floats(d: int) -> None:
    assert len(CODEC.encode(torch.ones(d), KEY)) == -(-d // 8) + 8


def test_where_all_are_on_one_side_the_other_has_no_mean() -> None:
    assert back(torch.tensor([1.0, 3.0])).tolist() == [2.0, 2.0]
    assert back(torch.tensor([-1.0, -3.0])).tolist() == [-2.0, -2.0]
    assert back(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    # and is written as 0
    assert CODEC.encode(torch.tensor([1.0, 3.0]), KEY) == bytes.fromhex("00000040 00000000 00")
    assert CODEC.encode(torch.tensor([-1.0, -3.0]), KEY) == bytes.fromhex("00000000 000000c0 03")


def test_no_other_two_values_are_nearer() -> None:
    draw = random.Random(1)
    x = torch.tensor([draw.gauss(0, 1) for _ in range(30)])
    got, negative = back(x), x < 0
    least = float((got - x).square().sum())
    for _ in range(100):
        other = got + torch.where(negative, draw.gauss(0, 0.1), draw.gauss(0, 0.1))
        assert float((other - x).square().sum()) > least


def test_the_stated_bound_holds() -> None:
    for seed in range(100):
        d = seed % 20 + 1
        x = keys.normal(keys.root(seed), d) ** 3
        sq = float(x.square().sum())
        assert float((back(x) - x).square().sum()) <= (1 - 1 / d) * sq + 1e-5 * sq
    assert CODEC.error(10) == 0.9


def test_the_means_of_the_largest_floats_are_finite() -> None:
    x = torch.tensor([3e38, -3e38, 3e38, -3e38])
    torch.testing.assert_close(back(x), x, rtol=1e-6, atol=0.0)


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.scale: unknown option\. Options: none"):
        build("onebit", {"scale": "mean"})
    with pytest.raises(ConfigError, match=r"Did you mean 'onebit'\?"):
        build("one_bit", {})
