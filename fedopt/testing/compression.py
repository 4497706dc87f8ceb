"""Laws of codecs."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import lift, registry
from fedopt.registry import Component
from fedopt.testing._laws import close, found, require, run, same, untouched, vector
from fedopt.types import Codec, FedoptError, WireError

_LENGTHS = (1, 2, 7, 64, 1000)
_DRAWS = 2000
_SIGMAS = 6.0
_RANKS = 3


def check_codec(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of a codec, with these options.

    shape         bytes out, finite `[d]` back; also for zeros, for one entry that is not 0, and for float64 input
    bytes         decode(encode(x)) is restore(compress(x)), bit by bit
    size          the bytes are as many as `size` says of the code
    stacked       the rows of a cohort, under vmap, give what each gives alone (to rounding), and the same sizes
    purity        the vector is not changed in place
    determinism   the same vector and key give the same bytes
    kind          exact: comes back bit by bit; unbiased: the mean over 2000 draws is the vector, within six standard
                  errors; contraction: the mean squared error is below ‖x‖²
    error         the mean squared error is at most what the codec promises, for vectors of several kinds
    denormals     a vector of the smallest floats, and one of large ones, come back finite and within the promise
    refusal       NaN and Inf are refused with FedoptError
    hostile       bytes that are too few, too many or none are refused with WireError; with any byte of the front
                  changed, they are refused or decoded to `[d]`, and never is memory taken for what they claim

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    codec = lift(component, options)
    run(
        component,
        {
            "shape": lambda: _shape(codec),
            "bytes": lambda: _bytes(codec),
            "size": lambda: _size(codec),
            "stacked": lambda: _stacked(codec),
            "purity": lambda: _purity(codec),
            "determinism": lambda: _determinism(codec),
            "kind": lambda: _kind(codec),
            "error": lambda: _error(codec),
            "denormals": lambda: _denormals(codec),
            "refusal": lambda: _refusal(codec),
            "hostile": lambda: _hostile(codec),
        },
    )


def _x(numel: int, dtype: torch.dtype = torch.float32, draw: int = 13) -> Tensor:
    return keys.normal(keys.fold(keys.root(draw), numel), numel, dtype=dtype)


def _offers(codec: Codec, numel: int, rank: int | Tensor = 1, draw: int | Tensor = 0) -> dict[str, Any]:
    every = {
        "shared": keys.fold(keys.root(9), draw),
        "rank": torch.as_tensor(rank),
        "kept": codec.start(numel),
    }
    return {name: value for name, value in every.items() if name in codec.asks}


def _encoded(codec: Codec, x: Tensor, draw: int = 0) -> bytes:
    return codec.encode(x, keys.root(draw), **_offers(codec, x.numel(), draw=draw))


def _back(codec: Codec, x: Tensor, draw: int = 0) -> Tensor:
    return codec.decode(_encoded(codec, x, draw), x.numel())


def _edges(numel: int) -> list[Tensor]:
    one = torch.zeros(numel)
    one[numel // 2] = -3.0
    return [_x(numel), torch.zeros(numel), one, torch.ones(numel)]


def _shape(codec: Codec) -> None:
    for numel in _LENGTHS:
        for x in (*_edges(numel), _x(numel, torch.float64)):
            payload = _encoded(codec, x)
            require(isinstance(payload, bytes), f"encode gives {type(payload).__name__} in place of bytes")
            back = codec.decode(payload, numel)
            vector(back, (numel,), back.dtype, f"{numel} entries decoded")
            require(back.dtype.is_floating_point, f"{back.dtype} comes back")
            out = torch.full((numel,), 7.0, dtype=back.dtype)
            same(codec.decode(payload, numel, out), back, "decoding into a buffer and without one")
            same(out, back, "the buffer and what is returned")


def _bytes(codec: Codec) -> None:
    for numel in _LENGTHS:
        for x in _edges(numel):
            code = codec.compress(x, keys.root(0), **_offers(codec, numel))
            same(_back(codec, x), codec.restore(code, numel), "decode(encode(x)) and restore(compress(x))")


def _size(codec: Codec) -> None:
    for numel in _LENGTHS:
        for x in _edges(numel):
            got = len(_encoded(codec, x))
            wanted = int(codec.size(codec.compress(x, keys.root(0), **_offers(codec, numel)), numel))
            require(got == wanted, f"{numel} entries take {got} bytes, and size says {wanted}")


def _stacked(codec: Codec) -> None:
    for numel in _LENGTHS:
        rows = torch.stack(_edges(numel))
        words, ranks = keys.fold(keys.root(5), torch.arange(4)), torch.arange(4)

        def work(x: Tensor, key: Tensor, rank: Tensor, numel: int = numel) -> tuple[Tensor, Tensor]:
            code = codec.compress(x, key, **_offers(codec, numel, rank))
            return codec.restore(code, numel), codec.size(code, numel)

        together, sizes = vmap(work)(rows, words, ranks)
        for i, row in enumerate(rows):
            payload = codec.encode(row, words[i], **_offers(codec, numel, ranks[i]))
            alone = codec.decode(payload, numel)
            close(together[i], alone, float(row.abs().max()), f"row {i} of a cohort and alone: {numel} entries")
            require(len(payload) == int(sizes[i]), f"row {i} takes {len(payload)} bytes, and {int(sizes[i])} stacked")


def _purity(codec: Codec) -> None:
    x = _x(64)
    untouched(lambda: _encoded(codec, x), x)
    untouched(lambda: codec.compress(x, keys.root(0), **_offers(codec, 64)), x)
    payload = _encoded(codec, x)
    decoded = codec.decode(payload, 64)
    before = decoded.clone()
    decoded.add_(1.0)  # writable, and not a window into the payload
    same(codec.decode(payload, 64), before, "writing to a decoded vector")


def _determinism(codec: Codec) -> None:
    x = _x(64)
    require(_encoded(codec, x, 1) == _encoded(codec, x, 1), "two equal calls give different bytes")


def _draws(codec: Codec, x: Tensor, count: int = _DRAWS) -> Tensor:
    """What comes back with so many different keys, float64."""
    numel, which = x.numel(), torch.arange(count)

    def back(key: Tensor, draw: Tensor) -> Tensor:
        offers = _offers(codec, numel, draw.remainder(_RANKS), draw)
        return codec.restore(codec.compress(x, key, **offers), numel)

    drawn: Tensor = vmap(back)(keys.fold(keys.root(21), which), which)
    return drawn.to(torch.float64)


def _kind(codec: Codec) -> None:
    if codec.kind == "exact":
        like = _back(codec, _x(2))
        tiny, words = torch.finfo(like.dtype), {4: torch.int32, 8: torch.int64}[like.dtype.itemsize]
        edges = torch.tensor([0.0, -0.0, tiny.max, tiny.min, tiny.tiny, tiny.tiny / 4, 1 / 3, -1.0], dtype=like.dtype)
        for x in (_x(1000, like.dtype), edges):
            same(_back(codec, x).view(words), x.view(words), "the bits")
        return
    x = _x(24)
    draws = _draws(codec, x)
    wanted = x.to(torch.float64)
    if codec.kind == "unbiased":
        spread = draws.std(dim=0) / math.sqrt(_DRAWS)
        gap = ((draws.mean(dim=0) - wanted).abs() - _SIGMAS * spread - 1e-6).max()
        require(float(gap) <= 0.0, "declared unbiased, but the mean over the draws is not the vector")
    elif codec.kind == "contraction":
        sq_error = float((draws - wanted).square().sum(dim=1).mean())
        sq_norm = float(wanted.square().sum())
        require(sq_error < sq_norm, f"declared contraction, but E‖C(x) - x‖² = {sq_error:.4g} >= {sq_norm:.4g}")


def _error(codec: Codec) -> None:
    for numel in (1, 24, 300):
        promised = codec.error(numel)
        if promised is None or math.isinf(promised):
            continue
        heavy = _x(numel) ** 3
        for x in (_x(numel), heavy, torch.ones(numel), torch.arange(1.0, numel + 1.0), _edges(numel)[2]):
            draws, wanted = _draws(codec, x, 400), x.to(torch.float64)
            sq_errors = (draws - wanted).square().sum(dim=1) / wanted.square().sum()
            # a mean over draws is off by its own standard error
            slack = _SIGMAS * float(sq_errors.std()) / 20.0
            measured = float(sq_errors.mean())
            require(
                measured <= promised + slack + 1e-9,
                f"promises E‖C(x) - x‖² <= {promised:.4g} ‖x‖² for d = {numel}, and has {measured:.4g}",
            )


def _denormals(codec: Codec) -> None:
    for scale in (2.0**-140, 1e30):
        x = _x(64) * scale
        back = _back(codec, x)
        vector(back, (64,), back.dtype, f"entries of about {scale:.0e} decoded")
        promised = codec.error(64)
        if codec.kind == "contraction" and promised is not None and not math.isinf(promised):
            wanted = x.to(torch.float64)
            off = float((back.to(torch.float64) - wanted).square().sum() / wanted.square().sum())
            require(off <= 1.0, f"entries of about {scale:.0e} come back with an error of {off:.3g} ‖x‖²")


def _refusal(codec: Codec) -> None:
    for value in (math.nan, math.inf, -math.inf):
        x = _x(64)
        x[5] = value
        try:
            _encoded(codec, x)
        except FedoptError:
            continue
        raise AssertionError(f"a vector with {value} is encoded")


def _hostile(codec: Codec) -> None:
    numel = 64
    payload = _encoded(codec, _x(numel))
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2]):
        if wrong == payload:
            continue
        try:
            codec.decode(wrong, numel)
        except WireError:
            continue
        raise AssertionError(f"a payload of {len(wrong)} bytes in place of {len(payload)} is accepted")
    codec.decode(payload, numel)  # what is loaded at the first call is not taken for what is claimed
    for place in range(min(32, len(payload))):
        for change in (0xFF, 0x80, 0x01):
            changed = bytearray(payload)
            changed[place] ^= change
            tracemalloc.start()
            try:
                decoded = codec.decode(bytes(changed), numel)
            except WireError:
                continue
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                require(peak < 1 << 20, f"byte {place} changed: {peak} bytes of memory are taken for {numel} entries")
            require(tuple(decoded.shape) == (numel,), f"byte {place} changed: shape {list(decoded.shape)} comes out")
