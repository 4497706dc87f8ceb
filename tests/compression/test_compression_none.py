"""The floats as they are."""

from __future__ import annotations

import random
import struct

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, WireError

KEY = keys.root(0)
SINGLE, DOUBLE = build("none", {}), build("none", {"dtype": "float64"})


def test_the_payload_byte_by_byte() -> None:
    assert SINGLE.encode(torch.tensor([1.0, -2.5]), KEY) == bytes.fromhex("0000803f 000020c0")
    assert DOUBLE.encode(torch.tensor([1.0, -2.5]), KEY) == bytes.fromhex("000000000000f03f 00000000000004c0")


def test_random_draws_come_back_as_they_went() -> None:
    draw = random.Random(0)
    for _ in range(100):
        d = draw.randint(1, 20)
        x = [draw.gauss(0, 1) * 10.0 ** draw.randint(-30, 30) for _ in range(d)]
        payload = DOUBLE.encode(torch.tensor(x, dtype=torch.float64), KEY)
        assert payload == b"".join(struct.pack("<d", value) for value in x)
        assert DOUBLE.decode(payload, d).tolist() == x
        assert SINGLE.decode(SINGLE.encode(torch.tensor(x), KEY), d).tolist() == torch.tensor(x).tolist()


def test_every_bit_of_every_finite_float_is_kept() -> None:
    words = keys.bits(keys.root(1), 1000).to(torch.int32)
    x = words.view(torch.float32)
    x = x[torch.isfinite(x)]
    assert x.numel() > 900
    assert torch.equal(SINGLE.decode(SINGLE.encode(x, KEY), x.numel()).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("numel", [0, 1, 7, 1000])
def test_the_length_is_four_or_eight_bytes_for_each_entry(numel: int) -> None:
    x = torch.zeros(numel)
    for codec, width in ((SINGLE, 4), (DOUBLE, 8)):
        assert len(codec.encode(x, KEY)) == int(codec.size(codec.compress(x, KEY), numel)) == width * numel
        assert codec.decode(codec.encode(x, KEY), numel).shape == (numel,)


def test_float64_is_rounded_and_strided_views_are_read_in_order() -> None:
    x = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    assert torch.equal(SINGLE.decode(SINGLE.encode(x, KEY), 3), x.float())
    assert torch.equal(DOUBLE.decode(DOUBLE.encode(x, KEY), 3), x)
    assert SINGLE.decode(SINGLE.encode(torch.arange(6.0)[::2], KEY), 3).tolist() == [0, 2, 4]


def test_a_vector_with_a_gradient_is_encoded_as_its_value() -> None:
    x = torch.ones(3, requires_grad=True)
    assert SINGLE.encode(x, KEY) == SINGLE.encode(torch.ones(3), KEY)


def test_decoded_vectors_can_be_written_to() -> None:
    payload = SINGLE.encode(torch.zeros(3), KEY)
    SINGLE.decode(payload, 3).add_(1.0)
    assert SINGLE.decode(payload, 3).tolist() == [0, 0, 0]


def test_a_buffer_is_filled_and_given_back() -> None:
    out = torch.full((3,), 7.0)
    assert SINGLE.decode(SINGLE.encode(torch.arange(3.0), KEY), 3, out) is out
    assert out.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (-1, "20 more bytes are needed, 19 were given"),
        (1, "1 bytes follow the last field"),
        (-20, "20 more bytes are needed, 0 were given"),
        (4, "4 bytes follow the last field"),
    ],
)
def test_a_payload_of_another_length_is_refused(change: int, message: str) -> None:
    payload = SINGLE.encode(torch.zeros(5), KEY)
    wrong = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(WireError, match=f"^{message}$"):
        SINGLE.decode(wrong, 5)


@pytest.mark.parametrize("x", [torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), torch.tensor(1.0)])
def test_only_vectors_of_floats_are_encoded(x: torch.Tensor) -> None:
    with pytest.raises(FedoptError, match=r"a vector of floats \[d\] is needed"):
        SINGLE.encode(x, KEY)


def test_entries_that_are_not_finite_are_refused_with_their_number() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    with pytest.raises(FedoptError, match="finite entries are needed, 3 are NaN or Inf"):
        SINGLE.encode(x, KEY)


def test_a_sum_that_overflows_is_no_reason_to_refuse() -> None:
    x = torch.full((4,), torch.finfo(torch.float32).max)
    assert torch.equal(SINGLE.decode(SINGLE.encode(x, KEY), 4), x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none", {"k": 3}, r"compression\.k: unknown option\. Options: dtype: 'float32' \| 'float64'"),
        ("none", {"dtpye": "float64"}, r"compression\.dtpye: unknown option\. Did you mean 'dtype'\?"),
        ("none", {"dtype": "float16"}, r"compression\.dtype: .*'float16' was given"),
        ("non", {}, r"compression\.name: no compression component 'non'\. Did you mean 'none'\?"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options)
