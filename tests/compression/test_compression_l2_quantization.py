"""Quantisation by the Euclidean norm against a loop, and its exact error."""

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
CODEC = build("l2_quantization", {})


def loop(x: list[float], key: Tensor) -> list[float]:
    length = math.sqrt(sum(v * v for v in x))
    drawn = keys.uniform(key, len(x)).tolist()
    result = []
    for value, u in zip(x, drawn, strict=True):
        present = length > 0 and u >= 1.0 - abs(value) / length
        result.append(math.copysign(length, value) if present else 0.0)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key = draw.randint(1, 20), keys.root(seed)
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        got = CODEC.decode(CODEC.encode(x, key), d)
        torch.testing.assert_close(got, torch.tensor(loop(x.tolist(), key)), rtol=1e-5, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    # an entry alone is the norm; 0 1 0 0 as Rice codes with the parameter 0 are "1", "01", "1", "1", and a sign
    x = torch.tensor([0.0, -2.0, 0.0, 0.0])
    assert CODEC.encode(x, KEY) == bytes.fromhex("00000040 00 00 01000000 1d 01")
    # In a longer vector positions are shorter: one of 256, after a gap of 5, with the Rice parameter of 255, which is
    # 7; no magnitude above 1, so an empty list of positions and one of magnitudes; a sign.
    x = torch.zeros(256)
    x[5] = 3.0
    assert CODEC.encode(x, KEY) == bytes.fromhex(
        "00004040 01"
        "01000000 07 01000000 01 05"  # positions
        "00000000 00 00000000"  # positions of large ones
        "00 00000000"  # large ones
        "00"  # signs
    )


def test_the_mean_the_error_and_the_number_of_entries_are_as_stated() -> None:
    draws = 20000

    for x in (keys.normal(KEY, 12), torch.ones(12), torch.arange(12.0)):

        def back(key: Tensor, x: Tensor = x) -> Tensor:
            return CODEC.restore(CODEC.compress(x, key), 12)

        found = vmap(back)(keys.fold(KEY, torch.arange(draws))).to(torch.float64)
        one, two = float(x.abs().sum()), float(x.norm())
        spread = found.std(dim=0) / draws**0.5
        assert bool(((found.mean(dim=0) - x).abs() <= 6.0 * spread).all())
        assert float((found - x).square().sum(dim=1).mean()) == pytest.approx(one * two - two**2, rel=0.03)
        assert one * two - two**2 <= (12**0.5 - 1) * two**2 * (1 + 1e-6)
        assert float((found != 0).sum(dim=1).double().mean()) == pytest.approx(one / two, rel=0.02)
        assert CODEC.error(12) == pytest.approx(12**0.5 - 1)


def test_one_entry_and_a_vector_of_zeros_come_back() -> None:
    assert CODEC.error(1) == 0.0
    for x in (torch.tensor([-3.0]), torch.zeros(5)):
        assert torch.equal(CODEC.decode(CODEC.encode(x, KEY), x.numel()), x)


def test_a_message_has_about_as_many_bits_as_stated() -> None:
    d = 10000
    payload = CODEC.encode(keys.normal(KEY, d), KEY)
    # a part of sqrt(d), 2 / sqrt(2 pi), of the entries are there for normal numbers, each with a position and a sign
    assert len(payload) * 8 < 1.5 * d**0.5 * math.log2(d)


def test_nothing_becomes_nan_where_the_norm_is_above_all_floats() -> None:
    x = torch.full((4,), 3e38)
    assert not bool(torch.isnan(CODEC.decode(CODEC.encode(x, KEY), 4)).any())


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.levels: unknown option\. Options: none"):
        build("l2_quantization", {"levels": 1})
    with pytest.raises(ConfigError, match=r"Did you mean 'l2_quantization'\?"):
        build("l2_quantisation", {})
