"""Natural compression against a loop over mantissas and exponents."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)
CODEC = build("natural", {})


def loop(x: list[float], key: Tensor) -> list[float]:
    drawn = keys.uniform(key, len(x)).tolist()
    result = []
    for value, u in zip(x, drawn, strict=True):
        if value == 0.0:
            result.append(0.0)
            continue
        mantissa, exponent = math.frexp(abs(value))  # |value| = mantissa 2^exponent, and 1/2 <= mantissa < 1
        lower = 2.0 ** (exponent - 1)
        power = 2.0 * lower if u < 2.0 * mantissa - 1.0 else lower
        result.append(math.copysign(min(power, 2.0**127), value))
    return result


def back(x: Tensor, key: Tensor = KEY) -> list[float]:
    found: list[float] = CODEC.decode(CODEC.encode(x, key), x.numel()).tolist()
    return found


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key = draw.randint(1, 20), keys.root(seed)
        spread = draw.choice([0, 3, 120])
        x = torch.tensor([draw.gauss(0, 1) * 2.0 ** draw.randint(-spread, spread) for _ in range(d)])
        x[draw.randrange(d)] = 0.0
        assert back(x, key) == loop(x.tolist(), key)


def test_the_payload_byte_by_byte() -> None:
    # The exponents, as float32 has them, are 127, 128 and 129 with the largest on top: 0x81. One more than how far each
    # is below it, 3 2 0 1, is "0001", "001", "1" and "01"; of those that are not 0, the second is negative.
    x = torch.tensor([1.0, -2.0, 0.0, 4.0])
    assert CODEC.encode(x, KEY) == bytes.fromhex("81 00 00 02000000 c802 02")


def test_nothing_but_powers_of_two_comes_back() -> None:
    x = keys.normal(KEY, 10000) * torch.exp2(keys.uniform(keys.root(1), 10000) * 200 - 100)
    words = torch.tensor(back(x)).view(torch.int32)
    assert bool((words & 0x7FFFFF == 0).all())
    ratio = torch.tensor(back(x)) / x
    assert 0.5 < float(ratio.min()) < 0.51
    assert 1.95 < float(ratio.max()) < 2.0


def test_powers_of_two_are_left_alone() -> None:
    x = torch.exp2(torch.arange(-126.0, 128.0)) * torch.tensor([1.0, -1.0]).repeat(127)
    assert back(x) == x.tolist()


def test_the_mean_is_right_and_the_error_is_at_most_an_eighth() -> None:
    x, draws = torch.tensor([1.0, 4 / 3, 1.5, -1.9, 5.0, 0.3]), 20000

    def one(key: Tensor) -> Tensor:
        return CODEC.restore(CODEC.compress(x, key), 6)

    found = vmap(one)(keys.fold(KEY, torch.arange(draws))).to(torch.float64)
    spread = found.std(dim=0) / draws**0.5
    assert bool(((found.mean(dim=0) - x).abs() <= 6.0 * spread + 1e-6).all())
    ratios = (found - x).square().mean(dim=0) / x.square()
    for ratio, value in zip(ratios.tolist(), x.abs().tolist(), strict=True):
        lower = 2.0 ** math.floor(math.log2(value))
        assert ratio == pytest.approx((value - lower) * (2 * lower - value) / value**2, rel=0.05)
        assert ratio < 0.125 * 1.03
    assert float(ratios[1]) == pytest.approx(0.125, rel=0.03)  # 4/3 is the worst
    assert CODEC.error(6) == 0.125


def test_the_largest_floats_stay_finite() -> None:
    assert back(torch.tensor([3.4e38, -3.4e38])) == [2.0**127, -(2.0**127)]


def test_denormal_numbers_become_zero_or_the_smallest_power() -> None:
    found = back(torch.full((4000,), 2.0**-127))
    assert set(found) == {0.0, 2.0**-126}
    assert found.count(0.0) == pytest.approx(2000, abs=6 * 1000**0.5)


def test_zeros_stay_zero() -> None:
    assert back(torch.zeros(5)) == [0.0] * 5
    assert back(torch.tensor([0.0, -0.0, 1.0])) == [0.0, 0.0, 1.0]


def test_normal_numbers_take_fewer_bits_than_their_signs_and_exponents() -> None:
    d = 100000
    for scale in (1e-20, 1.0, 1e20):
        bits = len(CODEC.encode(scale * keys.normal(KEY, d), KEY)) * 8 / d
        assert 3.5 < bits < 5.0


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.levels: unknown option\. Options: none"):
        build("natural", {"levels": 2})
    with pytest.raises(ConfigError, match=r"Did you mean 'natural'\?"):
        build("natrual", {})
