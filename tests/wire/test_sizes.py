"""The length of a message that was not made, against one that was."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.types import Batches
from fedopt.wire import sizes
from fedopt.wire.messages import VERSION, Written, write_up
from fedopt.wire.payload_pb2 import Batches as Walk
from fedopt.wire.payload_pb2 import Down, Number, Vector

NAMES = st.text(min_size=1, max_size=30)
VECTORS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(["", "topk", "l2_quantization"]), st.integers(0, 1 << 40), st.integers(0, 40_000)),
    max_size=4,
)  # fmt: skip


@given(VECTORS, st.lists(NAMES, max_size=5, unique=True), st.floats(allow_nan=False), st.integers(0, 1 << 60))
@settings(max_examples=200, deadline=None)
def test_an_answer(vectors: dict[str, tuple[str, int, int]], metrics: list[str], weight: float, exchange: int) -> None:
    bodies = {n: sizes.Body(codec, entries, torch.tensor(nbytes)) for n, (codec, entries, nbytes) in vectors.items()}
    written = {n: Written(codec, entries, bytes(nbytes)) for n, (codec, entries, nbytes) in vectors.items()}
    numbers: dict[str, float | int] = {name: 0.0 if i % 2 else -i for i, name in enumerate(metrics)}
    assert int(sizes.up(bodies, metrics)) == len(write_up(exchange, 7, written, numbers, weight))


@given(VECTORS, st.lists(NAMES, max_size=5, unique=True), NAMES, st.none() | st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_a_task(vectors: dict[str, tuple[str, int, int]], numbers: list[str], program: str, epochs: int | None) -> None:
    bodies = {n: sizes.Body(codec, entries, torch.tensor(nbytes)) for n, (codec, entries, nbytes) in vectors.items()}
    batches = None if epochs is None else Batches(epochs=epochs, size=None)
    message = Down(version=VERSION, exchange=0, client=3, key=-5, program=program, memory=9, settled=0)
    message.vectors.extend(
        Vector(name=n, codec=codec, entries=entries, body=bytes(nbytes))
        for n, (codec, entries, nbytes) in vectors.items()
    )
    message.numbers.extend(Number(name=name, real=0.0) for name in numbers)
    if epochs is not None:
        message.batches.CopyFrom(Walk(split="train", size=0, epochs=epochs, steps=0, shuffle=True))
    assert int(sizes.down(program, bodies, numbers, batches)) == message.ByteSize()


def test_lengths_of_many_clients_at_once() -> None:
    nbytes = torch.tensor([0, 1, 127, 128, 16_383, 16_384, 3_000_000])
    lengths = sizes.up({"delta": sizes.Body("topk", 10_000, nbytes)}, ["loss"])
    for length, n in zip(lengths.tolist(), nbytes.tolist(), strict=True):
        assert length == len(write_up(0, 0, {"delta": Written("topk", 10_000, bytes(n))}, {"loss": 1.0}, 1.0))
