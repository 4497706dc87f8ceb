"""Half precision against the rounding of `struct`."""

from __future__ import annotations

import random
import struct

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)
CODEC = build("fp16", {})


def back(x: torch.Tensor) -> list[float]:
    found: list[float] = CODEC.decode(CODEC.encode(x, KEY), x.numel()).tolist()
    return found


def half(value: float) -> float:
    """The nearest number of half precision, to even; ±65504 for those beyond."""
    found: float = struct.unpack("<e", struct.pack("<e", max(-65504.0, min(65504.0, value))))[0]
    return found


def test_equals_the_rounding_of_struct_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        d = draw.randint(1, 12)
        x = torch.tensor([draw.gauss(0, 1) * 2.0 ** draw.randint(-30, 20) for _ in range(d)])
        assert back(x) == [half(value) for value in x.tolist()]


def test_the_payload_byte_by_byte() -> None:
    # form 0: every entry in place
    assert CODEC.encode(torch.tensor([1.0, -2.0, 65504.0]), KEY) == bytes.fromhex("00 003c 00c0 ff7b")
    # form 1: one position of 16; the Rice parameter of a gap of 15 is 3, the gap 2 is "1" and the low bits 010
    x = torch.zeros(16)
    x[2] = -2.0
    assert CODEC.encode(x, KEY) == bytes.fromhex("01 01000000 03 01000000 01 02 00c0")


def test_two_bytes_for_each_entry_and_one_for_the_form() -> None:
    assert len(CODEC.encode(torch.ones(1000), KEY)) == 2001


def test_the_stated_bound_holds_for_normal_numbers() -> None:
    x = keys.normal(KEY, 20000) * torch.exp2(keys.uniform(keys.root(1), 20000) * 24 - 10)
    x = x[(x.abs() >= 2.0**-14) & (x.abs() <= 65504)]
    assert x.numel() > 18000
    ratio = (torch.tensor(back(x)) - x).abs() / x.abs()
    assert 0.9 * 2.0**-11 < float(ratio.max()) <= 2.0**-11


def test_ties_go_to_the_even_neighbour() -> None:
    assert back(torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11])) == [1.0, 1 + 2 * 2.0**-10]


def test_larger_entries_become_the_largest() -> None:
    assert back(torch.tensor([65519.0, 65520.0, -1e30, 3e38])) == [65504.0, 65504.0, -65504.0, 65504.0]
    assert back(torch.tensor([1e300, -1e300], dtype=torch.float64)) == [65504.0, -65504.0]


def test_smaller_ones_lose_digits_down_to_the_last() -> None:
    x = torch.tensor([2.0**-24, -(2.0**-24), 3.4 * 2.0**-24, 0.4 * 2.0**-24, 0.0])
    assert back(x) == [2.0**-24, -(2.0**-24), 3 * 2.0**-24, 0.0, 0.0]


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.bits: unknown option\. Options: none"):
        build("fp16", {"bits": 16})
    with pytest.raises(ConfigError, match=r"Did you mean 'fp16'\?"):
        build("fp61", {})
