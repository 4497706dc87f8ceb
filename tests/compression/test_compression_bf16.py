"""bfloat16 against rounding by whole numbers."""

from __future__ import annotations

import random
import struct

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)
CODEC = build("bf16", {})
MOST = struct.unpack("<f", b"\0\0\x7f\x7f")[0]


def back(x: torch.Tensor) -> list[float]:
    found: list[float] = CODEC.decode(CODEC.encode(x, KEY), x.numel()).tolist()
    return found


def upper(value: float) -> float:
    """The float32 whose lower 16 bits are rounded away, to even; the largest of them for those beyond."""
    value = max(-MOST, min(MOST, value))
    word = int.from_bytes(struct.pack("<f", value), "little")
    high, low = word >> 16, word & 0xFFFF
    if low > 0x8000 or (low == 0x8000 and high % 2 == 1):
        high += 1
    found: float = struct.unpack("<f", (high << 16).to_bytes(4, "little"))[0]
    return found


def test_equals_rounding_by_whole_numbers_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        d = draw.randint(1, 12)
        x = torch.tensor([draw.gauss(0, 1) * 2.0 ** draw.randint(-120, 120) for _ in range(d)])
        assert back(x) == [upper(value) for value in x.tolist()]


def test_the_payload_byte_by_byte() -> None:
    assert CODEC.encode(torch.tensor([1.0, -2.0, 0.15625]), KEY) == bytes.fromhex("00 803f 00c0 203e")
    # one position of 16; the Rice parameter of a gap of 15 is 3, the gap 2 is "1" and the low bits 010
    x = torch.zeros(16)
    x[2] = -2.0
    assert CODEC.encode(x, KEY) == bytes.fromhex("01 01000000 03 01000000 01 02 00c0")


def test_the_stated_bound_holds_for_normal_numbers() -> None:
    x = keys.normal(KEY, 20000) * torch.exp2(keys.uniform(keys.root(1), 20000) * 200 - 100)
    ratio = (torch.tensor(back(x)) - x).abs() / x.abs()
    assert 0.9 * 2.0**-8 < float(ratio.max()) <= 2.0**-8


def test_ties_go_to_the_even_neighbour() -> None:
    assert back(torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])) == [1.0, 1 + 2 * 2.0**-7]


def test_the_largest_floats_stay_finite() -> None:
    assert back(torch.tensor([3.4e38, -3.4e38])) == [MOST, -MOST]
    assert back(torch.tensor([1e300, -1e300], dtype=torch.float64)) == [MOST, -MOST]


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.bits: unknown option\. Options: none"):
        build("bf16", {"bits": 16})
    with pytest.raises(ConfigError, match=r"Did you mean 'bf16'\?"):
        build("bf61", {})
