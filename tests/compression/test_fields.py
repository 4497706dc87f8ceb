"""What codecs are made of on the wire: bytes there and back, their length, hostile bytes, and how few they are."""

from __future__ import annotations

import functools
import math
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import Bits, Floats, Kept, Levels, Sparse, build, dense, registry
from fedopt.compression._bits import parameter, parameters
from fedopt.compression._fields import Reader
from fedopt.registry import facts
from fedopt.types import Codec, WireError

KEY = keys.root(0)
QUICK = settings(max_examples=60)

# the format once more, a bit at a time


def joined(bits: list[int]) -> bytes:
    """Eight bits in a byte, the first of them least significant."""
    found = bytearray(-(-len(bits) // 8))
    for place, bit in enumerate(bits):
        found[place // 8] |= bit << place % 8
    return bytes(found)


def rice(values: list[int], mean: float | None = None) -> bytes:
    """The parameter, the length of the unary parts, these, and the low bits; the mean is that of the values."""
    k = 0
    if values:
        mean = sum(values) // len(values) if mean is None else mean
        while 2 ** (k + 1) <= mean:
            k += 1
    unary, low = [], []
    for value in values:
        unary += [0] * (value // 2**k) + [1]
        low += [value >> place & 1 for place in range(k)]
    return struct.pack("<BI", k, len(joined(unary))) + joined(unary) + joined(low)


def positions(there: list[int], m: int) -> bytes:
    gaps, last = [], -1
    for place in there:
        gaps.append(place - last - 1)
        last = place
    return struct.pack("<I", len(there)) + rice(gaps, (m - len(there)) // len(there) if there else None)


def sparse(values: list[float], letter: str) -> bytes:
    there = [i for i, value in enumerate(values) if value != 0.0]
    few = positions(there, len(values)) + b"".join(struct.pack(f"<{letter}", values[i]) for i in there)
    every = b"".join(struct.pack(f"<{letter}", value) for value in values)
    return b"\1" + few if len(few) < len(every) else b"\0" + every


def levels(values: list[int]) -> bytes:
    there = [i for i, value in enumerate(values) if value]
    found = [abs(values[i]) for i in there]
    large = [i for i, value in enumerate(found) if value > 1]
    every = rice([abs(value) for value in values])
    some = positions(there, len(values)) + positions(large, len(found)) + rice([found[i] - 2 for i in large])
    signs = joined([int(values[i] < 0) for i in there])
    return (b"\0" + every if len(every) <= len(some) else b"\1" + some) + signs


# there and back


def whole(field: Any, values: Tensor) -> Any:
    """What is read of what was written; nothing is left over, and `size` says how long it is."""
    body = field.write(values)
    reader = Reader(body)
    found = field.read(reader, values.shape[-1])
    reader.end()
    assert int(field.size(values)) == len(body)
    return found


def stacked(field: Any, rows: list[Tensor]) -> None:
    """Of rows under vmap `size` says what it says of each."""
    sizes = vmap(field.size)(torch.stack(rows))
    assert sizes.dtype == torch.int64
    assert sizes.tolist() == [len(field.write(row)) for row in rows]
    assert field.size(torch.stack(rows)).tolist() == sizes.tolist()


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@QUICK
@given(st.data(), st.integers(1, 64))
def test_bits_of_every_width(data: st.DataObject, width: int) -> None:
    rows = data.draw(
        st.integers(0, 20).flatmap(
            lambda m: st.lists(
                st.lists(st.integers(0, 2**width - 1) | st.just(2**width - 1), min_size=m, max_size=m),
                min_size=1,
                max_size=3,
            )
        )
    )
    tensors = [torch.tensor([signed(value) for value in row], dtype=torch.int64) for row in rows]
    for row, values in zip(rows, tensors, strict=True):
        as_one = sum(value << width * place for place, value in enumerate(row))
        assert Bits(width).write(values) == as_one.to_bytes(-(-len(row) * width // 8), "little")
        assert torch.equal(whole(Bits(width), values), values)
    stacked(Bits(width), tensors)


def test_no_width_of_bits_is_left_out() -> None:
    for width in range(1, 65):
        values = keys.bits(keys.root(width), 33)
        values = values if width == 64 else values & ((1 << width) - 1)
        assert torch.equal(whole(Bits(width), values), values), width


@QUICK
@given(st.data(), st.sampled_from(["e", "f", "d", "bfloat16"]))
def test_floats_bit_by_bit(data: st.DataObject, letter: str) -> None:
    dtype = {"e": torch.float16, "f": torch.float32, "d": torch.float64, "bfloat16": torch.bfloat16}[letter]
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    bound = 2 ** (8 * dtype.itemsize - 1)
    row = data.draw(st.lists(st.integers(-bound, bound - 1), max_size=20))  # any pattern, NaN among them
    values = torch.tensor(row, dtype=words).view(dtype)
    assert torch.equal(whole(Floats(dtype), values).view(words), values.view(words))
    kind = {2: "h", 4: "i", 8: "q"}[dtype.itemsize]
    assert Floats(dtype).write(values) == struct.pack(f"<{len(row)}{kind}", *row)
    if row:
        stacked(Floats(dtype), [values, values.flip(0)])


def test_floats_are_rounded_to_their_dtype() -> None:
    values = torch.tensor([1 / 3, 2.0], dtype=torch.float64)
    assert Floats().write(values) == struct.pack("<2f", 1 / 3, 2.0)
    assert Floats(torch.float16).write(values) == struct.pack("<2e", 1 / 3, 2.0)


def rows_of(entries: st.SearchStrategy[Any], zero: Any) -> st.SearchStrategy[list[list[Any]]]:
    """A few rows of one length, with few or many entries that are not 0."""

    def some(m: int) -> st.SearchStrategy[list[list[Any]]]:
        row = st.integers(0, 8).flatmap(
            lambda few: st.dictionaries(st.integers(0, m - 1), entries, max_size=few).map(
                lambda found: [found.get(i, zero) for i in range(m)]
            )
        )
        return st.lists(row | st.lists(entries, min_size=m, max_size=m), min_size=1, max_size=3)

    return (st.integers(1, 40) | st.sampled_from([100, 300, 1000])).flatmap(some)


@QUICK
@given(rows_of(st.floats(width=16, allow_nan=False), 0.0), st.sampled_from(["e", "f"]))
def test_sparse_floats(rows: list[list[float]], letter: str) -> None:
    field = Sparse({"e": torch.float16, "f": torch.float32}[letter])
    tensors = [torch.tensor(row, dtype=field.dtype) for row in rows]
    for row, values in zip(rows, tensors, strict=True):
        assert field.write(values) == sparse(row, letter)
        assert torch.equal(dense(whole(field, values)), values.float())
        # the same as positions and values, where a zero has no sign
        there, unsigned = torch.nonzero(values).flatten(), values + 0.0
        assert field.write(Kept(there, values[there], len(row))) == field.write(unsigned)
    stacked(field, tensors)


@QUICK
@given(st.data(), st.sampled_from([1, 2, 3, 16, 255, 1 << 20]))
def test_levels(data: st.DataObject, most: int) -> None:
    near = st.integers(-min(most, 3), min(most, 3))
    rows = data.draw(rows_of(near | st.integers(-most, most), 0))
    tensors = [torch.tensor(row, dtype=torch.int32) for row in rows]
    for row, values in zip(rows, tensors, strict=True):
        assert Levels(most).write(values) == levels(row)
        assert torch.equal(whole(Levels(most), values), values.to(torch.int64))
    stacked(Levels(most), tensors)


def test_both_forms_of_sparse_and_levels_are_used() -> None:
    few = torch.zeros(500)
    few[7] = 2.0
    for field, many in ((Sparse(), torch.ones(500)), (Levels(3), torch.full((500,), 3.0))):
        assert (field.write(few)[0], field.write(many)[0]) == (1, 0)


def test_a_vector_without_any_entry_that_is_not_zero() -> None:
    for m in (1, 2, 100):
        assert torch.equal(dense(whole(Sparse(), torch.zeros(m))), torch.zeros(m))
        assert torch.equal(whole(Levels(3), torch.zeros(m)), torch.zeros(m, dtype=torch.int64))


@pytest.mark.parametrize("count", [1, 3, 1 << 20, (1 << 23) - 1, 1 << 23, 3 << 22, (1 << 32) - 1])
def test_the_parameter_of_many_rows_is_that_of_one(count: int) -> None:
    """`size` takes the one and `write` the other; 2^23 entries are a model of eight million parameters."""
    for mean in (0, 1, 2, 3, 7, 100):
        total = count * mean
        assert int(parameters(torch.tensor(count), torch.tensor(total))) == parameter(count, total), mean
    assert int(parameters(torch.tensor(0), torch.tensor(5))) == parameter(0, 5) == 0


# bytes of others


CODECS = [
    (name, dict(options)) for name in registry.builtin() for options in facts(registry.get(name)).get("examples", ({},))
]
IDS = [f"{name}({','.join(f'{k}={v}' for k, v in options.items())})" for name, options in CODECS]
ENTRY, ROOM = 64, 1 << 16
"""Bytes that may be taken for an entry asked for, and besides."""


def encoded(codec: Codec, x: Tensor, seed: int = 0) -> bytes:
    d = x.numel()
    offers = {"shared": keys.root(seed), "rank": torch.tensor(seed), "kept": codec.start(d)}
    payload: bytes = codec.encode(x, keys.root(seed), **offers)
    return payload


def refused_or_decoded(decode: Callable[[bytes], Any], payload: bytes, d: int, entry: int = ENTRY) -> bool:
    """Whether it is a vector of d entries; WireError is the one other end, and both within a bound of memory."""
    tracemalloc.start()
    try:
        found = decode(payload)
    except WireError:
        found = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < entry * d + ROOM, f"{peak} bytes of memory for {d} entries and a payload of {len(payload)} bytes"
    assert found is None or tuple(dense(found).shape if isinstance(found, Kept) else found.shape) == (d,)
    return found is not None


@pytest.mark.parametrize(("name", "options"), CODECS, ids=IDS)
def test_arbitrary_bytes_are_refused_or_decoded(name: str, options: dict[str, Any]) -> None:
    codec = build(name, options)
    encoded(codec, torch.ones(50))  # what is loaded at the first call is taken for nobody

    @settings(max_examples=25)
    @given(st.binary(max_size=300), st.sampled_from([1, 2, 50]))
    def fuzz(payload: bytes, d: int) -> None:
        refused_or_decoded(lambda body: codec.decode(body, d), payload, d)

    fuzz()


@pytest.mark.parametrize(("name", "options"), CODECS, ids=IDS)
def test_mutated_payloads_are_refused_or_decoded(name: str, options: dict[str, Any]) -> None:
    codec, draw = build(name, options), random.Random(0)
    for d in (1, 40, 200):
        payloads = [encoded(codec, keys.normal(keys.root(seed), d) ** 3, seed) for seed in range(3)]
        for payload in payloads:
            assert refused_or_decoded(lambda body, d=d: codec.decode(body, d), payload, d)  # type: ignore[misc]
        for _ in range(60):
            body = bytearray(draw.choice(payloads))
            for _ in range(draw.choice([0, 1, 1, 2, 8])):
                # the front says how much of what follows
                place = draw.randrange(min(len(body), 24)) if draw.random() < 0.5 else draw.randrange(len(body))
                body[place] = draw.choice([0, 1, 255, 128, draw.randrange(256), body[place] ^ 1 << draw.randrange(8)])
            cut = draw.choice([0, 0, 0, 1, draw.randrange(len(body))])
            grown = draw.choice([b"", b"", b"\0", draw.randbytes(20)])
            mutated = bytes(body[: len(body) - cut]) + grown
            refused_or_decoded(lambda body, d=d: codec.decode(body, d), mutated, d)  # type: ignore[misc]


@pytest.mark.parametrize(("name", "options"), CODECS, ids=IDS)
def test_a_payload_of_another_length_is_refused(name: str, options: dict[str, Any]) -> None:
    codec = build(name, options)
    payload = encoded(codec, keys.normal(KEY, 50))
    for wrong in (payload[:-1], payload + b"\0", b"", payload + payload):
        if wrong != payload:
            with pytest.raises(WireError):
                codec.decode(wrong, 50)


NUMBERS = st.sampled_from([0, 1, 2, 7, 40, 62, 63, 64, 255, 1 << 16, 1 << 31, (1 << 32) - 1])


@settings(max_examples=400)
@given(
    st.sampled_from([Sparse(), Sparse(torch.float16), Levels(1), Levels(2), Levels(255), Levels(1 << 20)]),
    st.lists(NUMBERS | st.integers(0, 100), min_size=6, max_size=6),
    st.binary(max_size=60),
    st.sampled_from([1, 40]),
)
@example(Levels(255), [0, 0, 0, 0, 0, 0], b"", 1)
def test_heads_that_claim_anything_are_refused_or_decoded(field: Any, numbers: list[int], tail: bytes, m: int) -> None:
    """A form, a count, Rice parameters and lengths of all sizes, in the places where they are read."""
    form, count, k, length, other, more = numbers
    byte = bytes([form % 256])
    for body in (
        byte + struct.pack("<IBI", count, k % 256, length) + tail,
        byte + struct.pack("<BI", k % 256, length) + tail,
        byte + struct.pack("<IBI", count, k % 256, len(tail)) + tail + struct.pack("<IBI", other, k % 256, more),
        b"\1" + struct.pack("<IBI", 1, k % 256, 1) + b"\1" + struct.pack("<IBI", other, 0, more) + tail,
    ):
        refused_or_decoded(lambda body: field.read(Reader(body), m), body, m)


def test_values_above_the_largest_are_refused() -> None:
    for most in (1, 2, 3, 254):
        for sign in (1, -1):
            for m in (1, 300):  # in both forms
                values = torch.zeros(m, dtype=torch.int64)
                values[0] = sign * (most + 1)
                with pytest.raises(WireError):
                    Levels(most).read(Reader(Levels(most + 1).write(values)), m)


def test_positions_outside_of_the_vector_are_refused() -> None:
    values = torch.zeros(300)
    values[299] = 1.0
    body = Sparse().write(values)
    for m in (1, 256, 299):
        with pytest.raises(WireError, match=rf"a position below {m} is needed, 299 was given|a number is above {m}"):
            Sparse().read(Reader(body), m)
    with pytest.raises(WireError, match="2 positions at the most are needed, 3 were given"):
        Sparse().read(Reader(b"\1" + positions([0, 1, 2], 3) + bytes(12)), 2)


@pytest.mark.parametrize("field", [Sparse(), Levels(3)], ids=["sparse", "levels"])
def test_other_forms_are_refused(field: Any) -> None:
    body = field.write(torch.ones(5))
    for form in (2, 3, 255):
        with pytest.raises(WireError, match=f"a form below 2 is needed, {form} was given"):
            field.read(Reader(bytes([form]) + body[1:]), 5)


def test_numbers_that_leave_64_bits_are_refused() -> None:
    for k, quotient in ((62, 2), (62, 4), (60, 16), (63, 0), (64, 0), (255, 0)):
        unary = joined([0] * quotient + [1])
        body = b"\0" + struct.pack("<BI", k, len(unary)) + unary + bytes(-(-k // 8)) + b"\0"
        with pytest.raises(WireError):
            Levels(255).read(Reader(body), 1)


def test_bytes_after_the_last_unary_part_are_refused() -> None:
    body = struct.pack("<BI", 0, 1) + joined([0, 1, 0, 0, 1]) + joined([0, 0])
    assert Levels(3).read(Reader(b"\0" + body), 2).tolist() == [1, 2]
    longer = struct.pack("<BI", 0, 2) + joined([0, 1, 0, 0, 1]) + b"\0" + joined([0, 0])
    with pytest.raises(WireError, match="take 1 bytes at the most, 2 were given"):
        Levels(3).read(Reader(b"\0" + longer), 2)
    many = struct.pack("<BI", 0, 2) + joined([1] * 8) + b"\0" + b"\0"
    with pytest.raises(WireError, match="bytes follow the last unary number"):
        Levels(3).read(Reader(b"\0" + many), 8)


@pytest.mark.parametrize("fill", [b"\x00", b"\xff"])
@pytest.mark.parametrize("field", [Sparse(), Levels(3)], ids=["sparse", "levels"])
def test_a_long_stream_for_few_entries_takes_no_memory(field: Any, fill: bytes) -> None:
    """No 64 entries have a million bytes of unary parts."""
    n = 1 << 20
    body = b"\1" + struct.pack("<IBI", 5, 0, n) + fill * n
    refused_or_decoded(lambda body: field.read(Reader(body), 64), body, 64)


@pytest.mark.parametrize("field", [Sparse(), Levels(3)], ids=["sparse", "levels"])
def test_bytes_that_stand_for_nothing_are_refused(field: Any) -> None:
    """Nobody writes unary parts for no values, and by them a message could be of any length."""
    body = field.write(torch.zeros(300))
    stream = struct.pack("<IBI", 0, 0, 0)
    assert body.startswith(b"\1" + stream)
    longer = b"\1" + struct.pack("<IBI", 0, 0, 9) + bytes(9) + body[1 + len(stream) :]
    with pytest.raises(WireError):
        field.read(Reader(longer), 300)


@pytest.mark.parametrize(("name", "options"), CODECS, ids=IDS)
def test_long_vectors_take_memory_for_their_entries_alone(name: str, options: dict[str, Any]) -> None:
    codec, d = build(name, options), 20000
    wide = torch.exp2(keys.uniform(keys.root(3), d) * 200 - 100)  # of all magnitudes, so that levels are large
    for x in (keys.normal(KEY, d), wide):
        assert refused_or_decoded(lambda body: codec.decode(body, d), encoded(codec, x), d, entry=128)


# how few bytes there are


@functools.cache
def normal(d: int) -> Tensor:
    return keys.normal(keys.root(1), d)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25, 0.5])
def test_positions_of_top_k_take_little_more_than_the_least_possible(share: float) -> None:
    d = 100000
    k = round(share * d)
    payload = build("topk", {"share": share}).encode(normal(d), KEY)
    assert payload[0] == 1
    bits = 8 * (len(payload) - 4 * k)
    least = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)  # log2 C(d, k)
    assert least < bits < 1.15 * least


def test_signs_take_a_bit_and_a_float() -> None:
    d = 100000
    assert len(build("sign", {}).encode(normal(d), KEY)) == d // 8 + 4


@pytest.mark.parametrize("number", [4, 16, 256])
def test_levels_of_qsgd_take_little_more_than_their_entropy(number: int) -> None:
    d = 1000000
    codec = build("qsgd", {"levels": number, "bucket": 512})
    code = codec.compress(normal(d), KEY)
    bits = 8 * (int(codec.size(code, d)) - 4 * -(-d // 512))
    _, counts = torch.unique(code["level"], return_counts=True)
    parts = counts.double() / d
    entropy = -float((parts * parts.log2()).sum()) * d
    assert entropy < bits < 1.2 * entropy
