"""Laws of codecs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression import registry
from fedopt.registry import Component, facts, validate
from fedopt.testing._laws import found, require, run, same, untouched, vector
from fedopt.types import Codec, FedoptError

_LENGTHS = (1, 2, 7, 64, 1000)
_DRAWS = 2000
_SIGMAS = 6.0


def check_codec(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of a codec, with these options.

    shape         bytes out, `[numel]` finite float32 back; also for zeros and for float64 input
    size          the payload has exactly `nbytes(numel)` bytes
    purity        the vector is not changed in place
    determinism   the same vector and key give the same bytes
    kind          exact: float32 comes back bit by bit; unbiased: the mean over 2000 draws is the vector, within six
                  standard errors; contraction: the mean squared error is at most ‖x‖²
    hostile       a payload that is too short, too long, empty or has a changed head is refused with FedoptError or
                  decoded to `[numel]`, and nothing else happens

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    codec: Codec = component(**validate(component, options, "compression"))
    kind = facts(component).get("kind")
    run(
        component,
        {
            "shape": lambda: _shape(codec),
            "size": lambda: _size(codec),
            "purity": lambda: _purity(codec),
            "determinism": lambda: _determinism(codec),
            "kind": lambda: _kind(codec, kind),
            "hostile": lambda: _hostile(codec),
        },
    )


def _x(numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return keys.normal(keys.fold(keys.root(13), numel), numel, dtype=dtype)


def _back(codec: Codec, x: Tensor, draw: int = 0) -> Tensor:
    return codec.decode(codec.encode(x, keys.root(draw)), x.numel())


def _shape(codec: Codec) -> None:
    for numel in _LENGTHS:
        for x in (_x(numel), _x(numel, torch.float64), torch.zeros(numel)):
            payload = codec.encode(x, keys.root(0))
            require(isinstance(payload, bytes), f"encode gives {type(payload).__name__} in place of bytes")
            vector(codec.decode(payload, numel), (numel,), torch.float32, f"{numel} entries decoded")


def _size(codec: Codec) -> None:
    for numel in _LENGTHS:
        for x in (_x(numel), torch.zeros(numel)):
            got, wanted = len(codec.encode(x, keys.root(0))), codec.nbytes(numel)
            require(got == wanted, f"{numel} entries take {got} bytes, and nbytes says {wanted}")


def _purity(codec: Codec) -> None:
    x = _x(64)
    untouched(lambda: codec.encode(x, keys.root(0)), x)
    decoded = _back(codec, x)
    decoded.add_(1.0)  # writable, and not a window into the payload
    same(_back(codec, x) + 1.0, decoded, "writing to a decoded vector")


def _determinism(codec: Codec) -> None:
    x = _x(64)
    require(codec.encode(x, keys.root(1)) == codec.encode(x, keys.root(1)), "two equal calls give different bytes")


def _kind(codec: Codec, kind: str | None) -> None:
    require(
        kind in ("exact", "unbiased", "contraction"),
        f"declares the kind {kind!r}; 'exact', 'unbiased' or 'contraction' is needed",
    )
    if kind == "exact":
        tiny = torch.finfo(torch.float32)
        edges = torch.tensor([0.0, -0.0, tiny.max, tiny.min, tiny.tiny, tiny.tiny / 4, 1 / 3, -1.0])
        for x in (_x(1000), edges):
            same(_back(codec, x).view(torch.int32), x.view(torch.int32), "the bits of float32")
        return
    x = _x(24, torch.float64)
    draws = torch.stack([_back(codec, x, draw).to(torch.float64) for draw in range(_DRAWS)])
    if kind == "unbiased":
        spread = draws.std(dim=0) / math.sqrt(_DRAWS)
        gap = ((draws.mean(dim=0) - x).abs() - _SIGMAS * spread - 1e-6).max()
        require(float(gap) <= 0.0, "declared unbiased, but the mean over the draws is not the vector")
    else:
        sq_error = float((draws - x).square().sum(dim=1).mean())
        sq_norm = float(x.square().sum())
        require(
            sq_error <= sq_norm * (1 + 1e-6), f"declared contraction, but E‖C(x) - x‖² = {sq_error:.4g} > {sq_norm:.4g}"
        )


def _hostile(codec: Codec) -> None:
    numel = 64
    payload = codec.encode(_x(numel), keys.root(0))
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2]):
        try:
            codec.decode(wrong, numel)
        except FedoptError:
            continue
        raise AssertionError(f"a payload of {len(wrong)} bytes in place of {len(payload)} is accepted")
    for place in range(min(16, len(payload))):
        changed = bytearray(payload)
        changed[place] ^= 0xFF
        try:
            decoded = codec.decode(bytes(changed), numel)
        except FedoptError:
            continue
        require(tuple(decoded.shape) == (numel,), f"byte {place} changed: shape {list(decoded.shape)} comes out")
