"""Messages there and back, what is refused, and that nothing else happens to what was damaged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedopt
from fedopt import keys
from fedopt.compression import build, registry
from fedopt.registry import facts
from fedopt.types import Batches, Codec, WireError
from fedopt.wire.messages import (
    MANY,
    REASON,
    Awaited,
    Within,
    Written,
    longest,
    plain,
    read_down,
    read_up,
    write_down,
    write_refusal,
    write_up,
)
from fedopt.wire.payload_pb2 import DESCRIPTOR, Up

D = 100
FUZZ_S = float(os.environ.get("FEDOPT_FUZZ_SECONDS", "2"))
ROOT = Path(fedopt.__file__).parent.parent


def codecs() -> list[tuple[str, Codec]]:
    return [
        (f"{name} {options}", build(name, options))
        for name in registry.builtin()
        for options in facts(registry.get(name)).get("examples", ({},))
    ]


def offers(codec: Codec) -> dict[str, Any]:
    every = {"shared": keys.root(1), "rank": torch.tensor(1), "kept": codec.start(D)}
    return {name: every[name] for name in codec.asks}


def x() -> Tensor:
    return keys.normal(keys.root(3), D)


def answer(codec: Codec) -> bytes:
    body = codec.encode(x(), keys.root(0), **offers(codec))
    vectors = {"delta": Written(codec.name, D, body), "buffers": plain(torch.arange(3.0))}
    return write_up(5, 8, vectors, {"loss": 0.25, "steps": 7}, 12.0)


def awaited(codec: Codec) -> dict[str, Awaited]:
    return {"delta": Awaited(D, codec), "buffers": Awaited(3)}


@pytest.mark.parametrize(("name", "codec"), codecs())
def test_an_answer_comes_back(name: str, codec: Codec) -> None:
    found = read_up(answer(codec), 5, 8, awaited(codec))
    wanted = codec.decode(codec.encode(x(), keys.root(0), **offers(codec)), D)
    assert torch.equal(found.vectors["delta"], wanted) and found.vectors["buffers"].tolist() == [0.0, 1.0, 2.0]
    assert found.metrics == {"loss": 0.25, "steps": 7} and type(found.metrics["steps"]) is int
    assert (found.weight, found.exchange, found.client) == (12.0, 5, 8)


def test_a_task_comes_back() -> None:
    params = torch.randn(D, dtype=torch.float64)
    walk = Batches("train", None, 3, 5, False)
    message = write_down(2, 4, -77, "train", {"params": plain(params)}, {"lr": 0.1, "shared": -(1 << 62)}, walk)
    found = read_down(message, 4, {"params": Awaited(D, dtype=torch.float64)})
    assert torch.equal(found.vectors["params"], params) and found.numbers == {"lr": 0.1, "shared": -(1 << 62)}
    assert (found.exchange, found.key, found.program, found.batches) == (2, -77, "train", walk)
    assert read_down(write_down(0, 0, 0, "evaluate", {}, {}), 0, {}).batches is None
    told = read_down(write_down(0, 0, 0, "train", {}, {}, None, (1 << 64) - 1, 7), 0, {})
    assert (told.memory, told.settled) == ((1 << 64) - 1, 7)


def test_a_client_takes_vectors_by_any_name_up_to_a_length() -> None:
    within = Within(D)
    vectors = {"params": plain(torch.randn(D)), "control": plain(torch.randn(3))}
    message = write_down(0, 4, 0, "train", vectors, {})
    assert list(read_down(message, 4, within).vectors) == ["params", "control"]
    for wrong, reason in [
        (write_down(0, 4, 0, "train", {"params": plain(torch.randn(D + 1))}, {}), f"{D} entries at the most"),
        (write_down(0, 4, 0, "train", {"params": Written("", D, bytes(4 * D + 4))}, {}), "400 bytes are needed"),
        (write_down(0, 4, 0, "train", {"params": Written("topk", D, bytes(8))}, {}), "as they stand"),
        (write_down(0, 4, 0, "train", {str(i): plain(torch.zeros(1)) for i in range(MANY + 1)}, {}), "64 vectors"),
        (write_down(0, 5, 0, "train", vectors, {}), "to client 4"),
        (bytes(longest(within) + 1), "bytes at the most"),
    ]:
        with pytest.raises(WireError, match=reason):
            read_down(wrong, 4, within)


def test_a_vector_may_come_whole_in_place_of_its_code() -> None:
    codec = build("topk", {"count": 3})
    message = write_up(5, 8, {"delta": plain(x())}, {}, 1.0)
    found = read_up(message, 5, 8, {"delta": Awaited(D, codec, whole=True)})
    assert torch.equal(found.vectors["delta"], x()) and found.whole == {"delta"} and found.lengths == {"delta": 4 * D}
    coded = write_up(5, 8, {"delta": Written("topk", D, codec.encode(x(), keys.root(0)))}, {}, 1.0)
    assert not read_up(coded, 5, 8, {"delta": Awaited(D, codec, whole=True)}).whole
    with pytest.raises(WireError, match="by codec 'topk' is needed"):
        read_up(message, 5, 8, {"delta": Awaited(D, codec)})


def test_a_refusal_has_a_reason_and_nothing_else() -> None:
    found = read_up(write_refusal(5, 8, "no room " * 1000), 5, 8, awaited(build("none", {})))
    assert found.refused.startswith("no room") and len(found.refused) == REASON and not found.vectors


def changed(change: Callable[[Up], None]) -> bytes:
    found = Up()
    found.ParseFromString(answer(build("none", {})))
    change(found)
    return found.SerializeToString()


def renamed(message: Up) -> None:
    message.vectors[1].name = "delta"


REFUSED: list[tuple[Callable[[Up], Any], str]] = [
    (lambda m: setattr(m, "version", 2), "version 1 of the protocol is needed, 2 was given"),
    (lambda m: setattr(m, "exchange", 6), "client 8 in exchange 5 is needed, that of client 8 in exchange 6"),
    (lambda m: setattr(m, "client", 9), "that of client 9 in exchange 5"),
    (lambda m: setattr(m, "weight", float("nan")), "weight >= 0 is needed, nan"),
    (lambda m: setattr(m, "weight", -1.0), "weight >= 0 is needed, -1.0"),
    (lambda m: setattr(m.vectors[0], "entries", 1 << 60), "100 entries by codec 'none' is needed, one with 11529"),
    (lambda m: setattr(m.vectors[0], "codec", "topk"), "by codec 'topk' was given; do both ends have"),
    (lambda m: setattr(m.vectors[0], "name", "gradient"), "'gradient' was given"),
    (lambda m: setattr(m.vectors[0], "name", ""), "a name of 1 to 200 bytes is needed, one of 0"),
    (renamed, "delta, buffers are needed once each, 'delta' was given"),
    (lambda m: m.vectors.add(name="more"), "2 vectors are needed, 3 were given"),
    (lambda m: m.vectors.pop(), "vector 'buffers' is needed and was not given"),
    (lambda m: setattr(m.vectors[1], "body", b"1234"), "12 bytes are needed for 3 entries, 4 given"),
    (lambda m: setattr(m.vectors[0], "body", b"1234"), "400 bytes|396 more bytes|400 more bytes are needed, 4 were"),
    (lambda m: m.metrics.add(name="loss", real=1.0), "number 'loss' was given twice"),
    (lambda m: m.metrics.add(name="more"), "'more' was given without a value"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_refused(change: Callable[[Up], Any], message: str) -> None:
    with pytest.raises(WireError, match=message):
        read_up(changed(change), 5, 8, awaited(build("none", {})))


def test_what_is_no_message_or_too_long_is_refused() -> None:
    wanted = awaited(build("none", {}))
    for wrong in (b"\xff\xff", b"\x80" * 40, answer(build("none", {}))[:-3]):
        with pytest.raises(WireError, match=r"no message of the protocol|is needed"):
            read_up(wrong, 5, 8, wanted)
    with pytest.raises(WireError, match="bytes at the most is needed"):
        read_up(bytes(1 << 20), 5, 8, wanted)


def mutated(message: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, taken out, put in, or the end cut off."""
    found = bytearray(message)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place, kind = draw.randrange(len(found) + 1), draw.random()
        if kind < 0.5 and place < len(found):
            found[place] = draw.choice(
                (0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256), found[place] ^ 1 << draw.randrange(8))
            )
        elif kind < 0.7:
            found[place:place] = draw.randbytes(draw.choice((1, 4, 9)))
        elif kind < 0.9:
            del found[place : place + draw.choice((1, 4, 40))]
        else:
            del found[place:]
    return bytes(found)


def test_damaged_messages_are_refused_or_read_and_nothing_else() -> None:
    """`FEDOPT_FUZZ_SECONDS=600` for a long run; each number of the generator can be repeated."""
    known, reads, refused = codecs(), 0, 0
    start = [(codec, answer(codec)) for _, codec in known]
    bodies = [(codec, codec.encode(x(), keys.root(0), **offers(codec))) for codec, _ in start]
    for codec, message in start:  # what is loaded at a first call is not taken for what is claimed
        read_up(message, 5, 8, awaited(codec))
    until, seed = time.monotonic() + FUZZ_S, 0
    while time.monotonic() < until:
        seed += 1
        draw = random.Random(seed)
        codec, message = draw.choice(start)
        body = draw.choice([body for other, body in bodies if other is codec])
        started = time.perf_counter()
        tracemalloc.start()
        try:
            if draw.random() < 0.5:
                found = read_up(mutated(message, draw), 5, 8, awaited(codec)).vectors["delta"]
            else:
                found = codec.decode(mutated(body, draw), D)
            assert found.shape == (D,), f"seed {seed}, {codec.name}"
            reads += 1
        except WireError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {codec.name}: {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1 << 20, f"seed {seed}, {codec.name}: {peak} bytes were taken"
        assert time.perf_counter() - started < 5.0, f"seed {seed}, {codec.name}: it hangs"
    assert reads > 0 and refused > reads / 10
    print(f"{seed} messages: {reads} read, {refused} refused")


def test_the_generated_code_is_that_of_the_protocol(tmp_path: Path) -> None:
    if not (ROOT / "proto").is_dir():
        pytest.skip("needs the folder proto/ of a checkout")
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, of fedopt[dev]")
    made = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}",
         f"--pyi_out={tmp_path}", "fedopt/v1/payload.proto", "fedopt/v1/link.proto"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for name in (f"{proto}_pb2.{kind}" for proto in ("payload", "link") for kind in ("py", "pyi")):
        fresh, kept = (tmp_path / "fedopt" / "v1" / name).read_text(), (ROOT / "fedopt" / "wire" / name).read_text()
        assert _settled(fresh) == _settled(kept), f"{name} is out of date: run `make proto`"
    assert DESCRIPTOR.name == "fedopt/v1/payload.proto"
    shutil.rmtree(tmp_path)


def _settled(text: str) -> list[str]:
    """Without the version of the compiler."""
    return [
        line for line in text.splitlines() if "Protobuf Python Version" not in line and not line.strip(" ,").isdigit()
    ]
