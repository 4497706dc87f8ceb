"""Integers as bits: fixed widths and Rice codes, whole arrays at a time.

A Rice code (Rice, Plaunt 1971, "Adaptive Variable-Length Coding for Efficient Compression of Spacecraft Television
Data") of v with parameter k is v >> k in unary and the k low bits of v. Here the unary parts of all values stand
together, and so do the low bits: both halves are then written and read without a loop over values. For values of a
geometric law the length is within a few percent of their entropy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedopt.types import WireError

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_MOST = 40
"""Largest Rice parameter: values below 2^40 and more have short codes."""


def packed(values: Ints, width: int) -> bytes:
    """Unsigned integers below 2^width, `width` bits each, least significant first; the last byte is filled with 0."""
    if width == 0 or not values.size:
        return b""
    if width in (8, 16, 32, 64):
        return values.astype(f"<u{width // 8}").tobytes()
    if width == 1:
        return np.packbits(values.astype(np.uint8), bitorder="little").tobytes()
    rows, kind = -(-values.size // 8), np.min_scalar_type((1 << width) - 1).type
    columns = np.zeros((rows, 8), dtype=kind)
    columns.reshape(-1)[: values.size] = values
    out = np.zeros((rows, width), dtype=np.uint8)
    for place, byte, shift in _shares(width):
        value = columns[:, place]
        out[:, byte] |= (value >> kind(shift) if shift >= 0 else value << kind(-shift)).astype(np.uint8)
    return out.tobytes()[: (values.size * width + 7) // 8]


def _shares(width: int) -> Iterator[tuple[int, int, int]]:
    """Eight values fill `width` bytes: (value, byte, by how many bits to the right the value lies in this byte)."""
    for place in range(8):
        for byte in range(place * width // 8, ((place + 1) * width - 1) // 8 + 1):
            yield place, byte, 8 * byte - place * width


def unpacked(body: Bytes, count: int, width: int) -> Ints:
    """The `count` integers of `packed`; `body` has exactly the bytes that they take."""
    if width == 0 or count == 0:
        return np.zeros(count, dtype=np.int64)
    if width in (8, 16, 32, 64):
        return body.view(f"<u{width // 8}").astype(np.int64)
    rows, kind = -(-count // 8), np.min_scalar_type((1 << width) - 1).type
    grid = np.zeros((rows, width), dtype=np.uint8)
    grid.reshape(-1)[: body.size] = body
    columns = np.zeros((8, rows), dtype=kind)
    for place, byte, shift in _shares(width):
        part = grid[:, byte].astype(kind)
        columns[place] |= part << kind(shift) if shift >= 0 else part >> kind(-shift)
    columns &= kind((1 << width) - 1)
    return columns.T.astype(np.int64, order="C").reshape(-1)[:count]


def nbytes(count: Tensor | int, width: int) -> Tensor | int:
    """Length of `packed` for so many integers."""
    return (count * width + 7) // 8


def parameter(count: int, total: int) -> int:
    """The Rice parameter for `count` values with this sum: floor(log2(mean)), 0 for a mean below 2."""
    return max((total // count).bit_length() - 1, 0) if count else 0


def parameters(count: Tensor, total: Tensor) -> Tensor:
    """`parameter` for many counts and sums at once; under vmap too."""
    powers = torch.arange(1, _MOST + 1, device=count.device)
    # the sum is halved rather than the count doubled, which might leave int64
    reached = (count[..., None] > 0) & ((total[..., None] >> powers) >= count[..., None])
    return reached.sum(dim=-1)


def rice(values: Ints, k: int) -> tuple[bytes, bytes]:
    """Unary parts and low bits of values >= 0."""
    if not values.size:
        return b"", b""
    ends = np.cumsum((values >> k) + 1)
    bits = np.zeros(int(ends[-1]), dtype=np.uint8)
    bits[ends - 1] = 1
    return np.packbits(bits, bitorder="little").tobytes(), packed(values & ((1 << k) - 1), k)


def unrice(unary: Bytes, low: Bytes, count: int, k: int, most: int) -> Ints:
    """The `count` values of `rice`, none of which may be above `most`. Raises WireError for anything else."""
    # with the parameter that follows from their sum, the quotients of n values make less than 2 n
    if unary.size > (3 * count + 7) // 8:
        raise WireError(f"{count} unary numbers take {(3 * count + 7) // 8} bytes at the most, {unary.size} were given")
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if ends.size != count:
        raise WireError(f"{count} unary numbers are needed, {ends.size} were given")
    if count and unary.size * 8 - int(ends[-1]) > 8:
        raise WireError("bytes follow the last unary number")
    quotients = np.diff(ends, prepend=-1) - 1
    if count and int(quotients.max()) > most >> k:
        raise WireError(f"a number is above {most}")
    values = (quotients << k) | unpacked(low, count, k)
    if count and int(values.max()) > most:
        raise WireError(f"a number is above {most}")
    return values


def rice_nbytes(count: Tensor, quotients: Tensor, k: Tensor) -> Tensor:
    """Length of `rice` for `count` values whose `v >> k` sum up to `quotients`."""
    return (count + quotients + 7) // 8 + (count * k + 7) // 8
