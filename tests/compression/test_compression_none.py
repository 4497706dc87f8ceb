"""The float32 wire form."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.compression.none import none
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

KEY = keys.root(0)


def test_the_payload_byte_by_byte() -> None:
    payload = build("none", {}).encode(torch.tensor([1.0, -2.5]), KEY)
    assert payload == b"f32\0" + (2).to_bytes(8, "little") + struct.pack("<ff", 1.0, -2.5)


def test_round_trip_keeps_every_bit() -> None:
    words = keys.bits(keys.root(1), 1000).to(torch.int32)  # any bit pattern, NaN among them
    x = words.view(torch.float32)
    assert torch.equal(none().decode(none().encode(x, KEY), 1000).view(torch.int32), words)


@pytest.mark.parametrize("numel", [0, 1, 7, 1000])
def test_nbytes_is_the_length(numel: int) -> None:
    assert len(none().encode(torch.zeros(numel), KEY)) == none().nbytes(numel) == 12 + 4 * numel
    assert none().decode(none().encode(torch.zeros(numel), KEY), numel).shape == (numel,)


def test_float64_is_rounded_and_strided_views_are_read_in_order() -> None:
    x = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    assert torch.equal(none().decode(none().encode(x, KEY), 3), x.float())
    assert none().decode(none().encode(torch.arange(6.0)[::2], KEY), 3).tolist() == [0, 2, 4]


def test_decoded_vectors_can_be_written_to() -> None:
    payload = none().encode(torch.zeros(3), KEY)
    none().decode(payload, 3).add_(1.0)
    assert none().decode(payload, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("change", [-1, 1, -8, 4])
def test_a_payload_of_another_length_is_refused(change: int) -> None:
    payload = none().encode(torch.zeros(5), KEY)
    wrong = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(
        FedoptError, match=f"of 32 bytes is needed for 5 entries in float32, one of {32 + change} bytes"
    ):
        none().decode(wrong, 5)


def test_a_head_that_claims_much_allocates_nothing() -> None:
    payload = b"f32\0" + (1 << 60).to_bytes(8, "little") + bytes(20)
    tracemalloc.start()
    with pytest.raises(FedoptError, match=r"5 entries is needed, one with tag .* and 1152921504606846976 entries"):
        none().decode(payload, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_another_format_is_refused() -> None:
    payload = none().encode(torch.zeros(5), KEY)
    with pytest.raises(FedoptError, match="one with tag b'topk' and 5 entries"):
        none().decode(b"topk" + payload[4:], 5)


@pytest.mark.parametrize("x", [torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64)])
def test_only_vectors_of_floats_are_encoded(x: torch.Tensor) -> None:
    with pytest.raises(FedoptError, match=r"a vector of floats \[d\] is needed"):
        none().encode(x, KEY)


def test_there_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.k: unknown option\. Options: none"):
        build("none", {"k": 3})
