"""Codecs: bytes, error and speed, and how far their sizes are from what information theory allows.

    python -m bench.codecs [--d 10000000] [--codec topk ...] [--repetitions 5]

The vector is N(0, 1). Speeds are of the dense vector, 4 d bytes, per second, into a given buffer; beside some of them
what torch, NumPy or another library does with the same vector without a wire format: one-liners, and bitsandbytes where
it is installed (`pip install --no-deps bitsandbytes`). Their tables go between the marks of docs/compression.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bench import machine
from bench.pages import filled
from bench.processes import ROOT
from bench.run import store
from bench.table import rows
from fedopt import keys
from fedopt.compression import build
from fedopt.types import Codec

COMMAND = "python -m bench.codecs"
PAGE = ROOT / "docs" / "compression.md"

CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    "topk 1 %": ("topk", {"share": 0.01}),
    "topk 10 %": ("topk", {"share": 0.1}),
    "randk 1 %": ("randk", {"share": 0.01}),
    "permk, 10 clients": ("permk", {"n": 10}),
    "threshold 0.5": ("threshold", {"least": 0.5}),
    "qsgd, 4 levels": ("qsgd", {"levels": 4}),
    "qsgd, 16 levels": ("qsgd", {"levels": 16}),
    "qsgd, 256 levels": ("qsgd", {"levels": 256}),
    "l2_quantization": ("l2_quantization", {}),
    "terngrad": ("terngrad", {}),
    "natural": ("natural", {}),
    "sign": ("sign", {}),
    "onebit": ("onebit", {}),
    "blocks, 8 bits": ("blocks", {}),
    "blocks, 4 bits": ("blocks", {"bits": 4}),
    "powersgd, rank 2": ("powersgd", {"rank": 2}),
    "sketch, 3 x d / 30": ("sketch", {"columns": 0}),
    "topk 1 % and fp16": ("compose", {"first": {"name": "topk", "share": 0.01}, "then": {"name": "fp16"}}),
    "topk 1 % and natural": ("compose", {"first": {"name": "topk", "share": 0.01}, "then": {"name": "natural"}}),
}


class Other(NamedTuple):
    """What somebody else's code does with the same vector."""

    title: str
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor, Any], Any]
    """Into a given buffer."""


def others() -> dict[str, list[Other]]:
    """By codec, what there is to compare it with."""
    found = {
        "fp16": [Other("torch: x.half()", lambda x: x.half(), lambda out, code: out.copy_(code))],
        "topk 1 %": [
            Other(
                "torch: x.abs().topk(k)",
                lambda x: (i := x.abs().topk(x.numel() // 100).indices, x[i]),
                lambda out, code: out.zero_().scatter_(0, code[0], code[1]),
            )
        ],
        "sign": [
            Other(
                "NumPy: packbits(x < 0)",
                lambda x: np.packbits(x.numpy() < 0),
                lambda out, code: out.copy_(torch.from_numpy(1.0 - 2.0 * np.unpackbits(code, count=out.numel()))),
            )
        ],
        "blocks, 8 bits": [
            Other(
                "torch: quantize_per_tensor",
                lambda x: torch.quantize_per_tensor(x, float(x.abs().max()) / 127, 0, torch.qint8),
                lambda out, code: out.copy_(code.dequantize()),
            )
        ],
    }
    if importlib.util.find_spec("bitsandbytes") is not None:
        library = importlib.import_module("bitsandbytes.functional")
        found["blocks, 8 bits"].append(
            Other(
                "bitsandbytes: quantize_blockwise",
                lambda x: library.quantize_blockwise(x, blocksize=64),
                lambda out, code: out.copy_(library.dequantize_blockwise(*code)),
            )
        )
        found["blocks, 4 bits"] = [
            Other(
                "bitsandbytes: quantize_fp4",
                lambda x: library.quantize_fp4(x, blocksize=64),
                lambda out, code: out.copy_(library.dequantize_fp4(*code).view(-1)),
            )
        ]
    return found


console = Console()


def timed(call: Callable[[], Any], repetitions: int) -> tuple[float, Any]:
    """Median of the seconds of a call, after one that does not count, and what it gave."""
    result = call()
    took = []
    for _ in range(repetitions):
        started = time.perf_counter()
        result = call()
        took.append(time.perf_counter() - started)
    return statistics.median(took), result


def measure(name: str, x: Tensor, repetitions: int) -> dict[str, Any]:
    """Bytes, error and speeds of one codec."""
    kind, options = CODECS[name]
    d = x.numel()
    if kind == "sketch":
        options = {"columns": max(d // 30, 1)}
    codec = build(kind, options)
    offers = {"shared": keys.root(1), "rank": torch.tensor(0), "kept": codec.start(d)}
    asked = {offer: offers[offer] for offer in codec.asks}
    encode_s, payload = timed(lambda: codec.encode(x, keys.root(0), **asked), repetitions)
    out = torch.empty(d)
    decode_s, back = timed(lambda: codec.decode(payload, d, out), repetitions)
    found = {
        "codec": name,
        "kind": codec.kind,
        "bytes": len(payload),
        "error": float((back - x).square().sum() / x.square().sum()),
        "encode_gb_per_s": 4e-9 * d / encode_s,
        "decode_gb_per_s": 4e-9 * d / decode_s,
    }
    found["beside"] = [_beside(other, x, out, repetitions) for other in others().get(name, [])]
    return found


def _beside(other: Other, x: Tensor, out: Tensor, repetitions: int) -> dict[str, Any]:
    encode_s, code = timed(lambda: other.encode(x), repetitions)
    decode_s, _ = timed(lambda: other.decode(out, code), repetitions)
    return {
        "title": other.title,
        "error": float((out - x).square().sum() / x.square().sum()),
        "encode_gb_per_s": 4e-9 * x.numel() / encode_s,
        "decode_gb_per_s": 4e-9 * x.numel() / decode_s,
    }


def bounds() -> list[dict[str, Any]]:
    """Sizes beside the least that information theory allows."""
    found = []
    d = 1_000_000
    x = keys.normal(keys.root(5), d)
    for share in (0.001, 0.01, 0.1, 0.25, 0.5):
        k = round(share * d)
        payload = build("topk", {"share": share}).encode(x, keys.root(0))
        least = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2.0)
        found.append({"what": f"topk, positions of {share:.1%}", "bits": 8 * (len(payload) - 4 * k) / d,
                      "least": least / d})  # fmt: skip
    for levels in (4, 16, 256):
        codec: Codec = build("qsgd", {"levels": levels})
        code = codec.compress(x, keys.root(0))
        _, counts = torch.unique(code["level"], return_counts=True)
        share_of = counts.to(torch.float64) / d
        entropy = float(-(share_of * share_of.log2()).sum())
        length = len(codec.encode(x, keys.root(0))) - 4 * code["norm"].numel()
        found.append({"what": f"qsgd, {levels} levels", "bits": 8 * length / d, "least": entropy})
    sign = build("sign", {}).encode(x, keys.root(0))
    found.append({"what": "sign", "bits": 8 * len(sign) / d, "least": 1.0})
    return found


def main() -> None:
    """Measure, print, store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--d", type=int, default=10_000_000, help="entries")
    arguments.add_argument("--codec", nargs="*", choices=list(CODECS), help="these alone; nothing is stored then")
    arguments.add_argument("--repetitions", type=int, default=5)
    given = arguments.parse_args()
    torch.set_num_threads(machine.cores())
    x = keys.normal(keys.root(7), given.d)
    cells = []
    for name in given.codec or CODECS:
        with console.status(name):
            cells.append(measure(name, x, given.repetitions))
    value = {
        "threads": machine.cores(), "machine": machine.describe(), "sitting": time.strftime("%Y-%m-%d %H:%M"),
        "d": given.d, "cells": cells, "bounds": [] if given.codec else bounds(),
    }  # fmt: skip
    print(text(value))
    if not given.codec:
        print(f"stored as {store('codecs', value).relative_to(ROOT)}")
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), COMMAND, text(value)), encoding="utf-8")


def text(value: dict[str, Any]) -> str:
    """All that was measured as tables in Markdown."""
    header = ("codec", "bytes per entry", "error", "encode GB/s", "decode GB/s")
    body = [line for cell in value["cells"] for line in _lines(cell, value["d"])]
    said = f"N(0, 1), d = {value['d']:,}, {value['threads']} threads, {value['machine']['processor']}.\n\n"
    said += rows(header, body)
    if value["bounds"]:
        said += "\n" + rows(("what", "bits per entry", "at least", "ratio"), [_bound(row) for row in value["bounds"]])
    return said


def _lines(cell: dict[str, Any], d: int) -> list[list[str]]:
    own = [[cell["codec"], f"{cell['bytes'] / d:.4f}", *_measured(cell)]]
    return own + [[f"- {beside['title']}", "", *_measured(beside)] for beside in cell["beside"]]


def _measured(found: dict[str, Any]) -> list[str]:
    return [f"{found['error']:.3g}", f"{found['encode_gb_per_s']:.2f}", f"{found['decode_gb_per_s']:.2f}"]


def _bound(row: dict[str, Any]) -> list[str]:
    return [row["what"], f"{row['bits']:.4f}", f"{row['least']:.4f}", f"{row['bits'] / row['least']:.3f}"]


if __name__ == "__main__":
    main()
