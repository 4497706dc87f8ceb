"""What codecs are made of on the wire: fields, each an array of one kind with its own way into bytes.

A codec says of each tensor of its code which field it is; bytes, their exact length and their reading follow from it.
`size` is the length of `write` without writing, for many rows at once and under vmap.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fedopt.compression import _bits
from fedopt.compression._bits import Bytes, Ints
from fedopt.types import FedoptError, WireError

MOST = (1 << 32) - 1
"""Largest number of entries in a field."""

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

_STREAM = struct.Struct("<BI")  # Rice parameter, bytes of unary parts


class Reader:
    """Bytes from outside, taken from the front; whoever takes more than there is gets a WireError."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body, self._at = memoryview(body), 0

    @property
    def left(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._body) - self._at

    def take(self, n: int) -> Bytes:
        """The next n bytes, read-only."""
        if n > self.left:
            raise WireError(f"{n} more bytes are needed, {self.left} were given")
        self._at += n
        return np.frombuffer(self._body, dtype=np.uint8, count=n, offset=self._at - n)

    def byte(self) -> int:
        return int(self.take(1)[0])

    def number(self) -> int:
        """An unsigned integer of 4 bytes."""
        return int(self.take(4).view("<u4")[0])

    def end(self) -> None:
        """Raises WireError if anything is left."""
        if self.left:
            raise WireError(f"{self.left} bytes follow the last field")


class Field(Protocol):
    """An array `[m]` of one kind."""

    def size(self, values: Tensor) -> Tensor: ...
    def write(self, values: Any) -> bytes: ...
    def read(self, reader: Reader, m: int) -> Any: ...


class Bits(NamedTuple):
    """Unsigned integers below 2^width, `width` bits each."""

    width: int

    def size(self, values: Tensor) -> Tensor:
        return _full(values, int(_bits.nbytes(values.shape[-1], self.width)))

    def write(self, values: Tensor) -> bytes:
        if self.width == 1:  # without the eightfold of whole numbers in between
            flags = values.detach().cpu().to(torch.bool).numpy()
            return np.packbits(flags.view(np.uint8), bitorder="little").tobytes()
        return _bits.packed(_ints(values), self.width)

    def read(self, reader: Reader, m: int) -> Tensor:
        body = reader.take(int(_bits.nbytes(m, self.width)))
        if self.width == 1:
            return torch.from_numpy(np.unpackbits(body, count=m, bitorder="little"))
        return torch.from_numpy(_bits.unpacked(body, m, self.width))


class Floats(NamedTuple):
    """Little-endian floats, every one of them, bit by bit."""

    dtype: torch.dtype = torch.float32

    def size(self, values: Tensor) -> Tensor:
        return _full(values, values.shape[-1] * self.dtype.itemsize)

    def write(self, values: Tensor) -> bytes:
        return _floats(values, self.dtype)

    def read(self, reader: Reader, m: int) -> Tensor:
        return _unfloats(reader.take(m * self.dtype.itemsize), self.dtype)


class Kept(NamedTuple):
    """A vector of which few entries are not 0, as one vector alone may be held: increasing positions, and values."""

    positions: Tensor
    values: Tensor
    numel: int

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The vector `[numel]`, in a buffer of that length if one is given."""
        out = torch.zeros(self.numel, dtype=self.values.dtype) if out is None else out.zero_()
        out[self.positions] = self.values.to(out.dtype)
        return out


class Sparse(NamedTuple):
    """Floats of which many are 0: the gaps between the others as Rice codes, and their values.

    The gaps of k positions out of d take about log2 C(d, k) bits, the least possible. Where little is 0, all of them
    are written in place. `write` takes the whole vector or a `Kept`; `read` gives one or the other, as it was written.
    """

    dtype: torch.dtype = torch.float32

    def size(self, values: Tensor) -> Tensor:
        there = values != 0
        count, _, gaps = _gaps_size(there)
        return 1 + torch.minimum(_full(values, values.shape[-1] * self.dtype.itemsize),
                                 4 + gaps + count * self.dtype.itemsize)  # fmt: skip

    def write(self, values: Tensor | Kept) -> bytes:
        if isinstance(values, Kept):
            few = values
        else:
            values = values.detach().cpu()
            # a position takes a bit or more: where nearly all are there, none need be looked for
            there, each = int(torch.count_nonzero(values)), self.dtype.itemsize
            if there * each + there // 8 >= values.numel() * each:
                return b"\0" + _floats(values, self.dtype)
            positions = torch.nonzero(values).flatten()
            few = Kept(positions, values[positions], values.numel())
        sparse = _write_positions(_within(few.positions.numpy(), few.numel), few.numel)
        if len(sparse) + few.values.numel() * self.dtype.itemsize < few.numel * self.dtype.itemsize:
            return b"\1" + sparse + _floats(few.values, self.dtype)
        return b"\0" + _floats(few.dense() if isinstance(values, Kept) else values, self.dtype)

    def read(self, reader: Reader, m: int) -> Tensor | Kept:
        if _mode(reader, 2) == 0:
            return _unfloats(reader.take(m * self.dtype.itemsize), self.dtype)
        positions = _read_positions(reader, m)
        values = _unfloats(reader.take(positions.size * self.dtype.itemsize), self.dtype)
        return Kept(torch.from_numpy(positions), values, m)


class Levels(NamedTuple):
    """Small signed integers, in the shorter of two forms.

    0: all magnitudes as Rice codes, and the signs of those that are not 0;
    1: the positions of those that are not 0; among these, the positions of magnitudes above 1, and those less 2 as Rice
       codes; the signs. Each position costs what is left to know of it, down to a small part of a bit.

    most: no magnitude is above it.
    """

    most: int

    def size(self, values: Tensor) -> Tensor:
        magnitudes = values.to(torch.int64).abs()
        there = magnitudes > 0
        count, total, m = there.sum(dim=-1), magnitudes.sum(dim=-1), values.shape[-1]
        signs = (count + 7) // 8
        every = _full(values, m)
        all_of_them = _rice_size(every, total, magnitudes, torch.ones_like(there))
        large = magnitudes > 1
        among = large.sum(dim=-1)
        some = 8 + _gaps_size(there)[2] + _gaps_size(large, there)[2]
        some = some + _rice_size(among, total - count - among, magnitudes - 2, large)
        return 1 + signs + torch.minimum(all_of_them, some)

    def write(self, values: Tensor) -> bytes:
        numbers = _ints(values)
        magnitudes = np.abs(numbers)
        positions = np.flatnonzero(magnitudes)
        signs = _bits.packed((numbers[positions] < 0).astype(np.int64), 1)
        dense = _write_rice(magnitudes)
        found = magnitudes[positions]
        large = np.flatnonzero(found > 1)
        sparse = _write_positions(positions, numbers.size) + _write_positions(large, positions.size)
        sparse += _write_rice(found[large] - 2)
        return (b"\0" + dense if len(dense) <= len(sparse) else b"\1" + sparse) + signs

    def read(self, reader: Reader, m: int) -> Tensor:
        if _mode(reader, 2) == 0:
            magnitudes = _read_rice(reader, m, self.most)
            positions = np.flatnonzero(magnitudes)
            found = magnitudes[positions]
        else:
            positions = _read_positions(reader, m)
            large = _read_positions(reader, positions.size)
            found = np.ones(positions.size, dtype=np.int64)
            found[large] = _read_rice(reader, large.size, self.most - 2) + 2
        negative = _bits.unpacked(reader.take((positions.size + 7) // 8), positions.size, 1)
        numbers = np.zeros(m, dtype=np.int64)
        numbers[positions] = np.where(negative > 0, -found, found)
        return torch.from_numpy(numbers)


def _full(values: Tensor, number: int) -> Tensor:
    """The number for each row of `values [..., m]`."""
    return torch.full(values.shape[:-1], number, dtype=torch.int64, device=values.device)


def _mode(reader: Reader, known: int) -> int:
    mode = reader.byte()
    if mode >= known:
        raise WireError(f"a form below {known} is needed, {mode} was given")
    return mode


def dense(values: Tensor | Kept, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `Sparse` read or was to write, as a vector in this dtype."""
    return (values.dense() if isinstance(values, Kept) else values).to(dtype)


def _within(values: Ints, numel: int) -> Ints:
    if numel > MOST:
        raise FedoptError(f"a field has {MOST} entries at the most, {numel} were given")
    return values


def _ints(values: Tensor) -> Ints:
    return _within(values.detach().cpu().to(torch.int64).numpy(), values.numel())


def _floats(values: Tensor, dtype: torch.dtype) -> bytes:
    values = values.detach().to(device="cpu", dtype=dtype).contiguous()
    return values.view(_WORDS[dtype.itemsize]).numpy().astype(f"<i{dtype.itemsize}", copy=False).tobytes()


def _unfloats(body: Bytes, dtype: torch.dtype) -> Tensor:
    # a copy, because the bytes are read-only
    words = body.view(f"<i{dtype.itemsize}").astype(f"=i{dtype.itemsize}")
    return torch.from_numpy(words).view(dtype)


def _write_rice(values: Ints) -> bytes:
    k = _bits.parameter(values.size, int(values.sum()))
    unary, low = _bits.rice(values, k)
    return _STREAM.pack(k, len(unary)) + unary + low


def _read_rice(reader: Reader, count: int, most: int) -> Ints:
    k, length = _STREAM.unpack(reader.take(_STREAM.size).tobytes())
    if k >= 63:
        raise WireError(f"a Rice parameter below 63 is needed, {k} was given")
    unary = reader.take(length)
    if count and most < 0:
        raise WireError("a number is above what is allowed")
    return _bits.unrice(unary, reader.take((count * k + 7) // 8), count, k, most)


def _rice_size(count: Tensor, total: Tensor, values: Tensor, there: Tensor) -> Tensor:
    k = _bits.parameters(count, total)
    quotients = torch.where(there, values >> k[..., None], 0).sum(dim=-1)
    return _STREAM.size + _bits.rice_nbytes(count, quotients, k)


def _write_positions(positions: Ints, m: int) -> bytes:
    """How many of m, and the gaps before each."""
    k = _bits.parameter(positions.size, m - positions.size)
    unary, low = _bits.rice(np.diff(positions, prepend=-1) - 1, k)
    return struct.pack("<I", positions.size) + _STREAM.pack(k, len(unary)) + unary + low


def _read_positions(reader: Reader, m: int) -> Ints:
    count = reader.number()
    if count > m:
        raise WireError(f"{m} positions at the most are needed, {count} were given")
    positions = np.cumsum(_read_rice(reader, count, m) + 1) - 1
    if count and int(positions[-1]) >= m:
        raise WireError(f"a position below {m} is needed, {int(positions[-1])} was given")
    return positions


def _gaps_size(there: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Of the entries that are `there [..., m]`: how many, the Rice parameter, and the bytes of the gaps' stream.

    Places are counted `among` some of the entries, or among all.
    """
    count = there.sum(dim=-1)
    if among is None:
        k = _bits.parameters(count, there.shape[-1] - count)
        index = torch.arange(there.shape[-1], device=there.device)
    else:
        k = _bits.parameters(count, among.sum(dim=-1) - count)
        index = among.cumsum(dim=-1) - 1
    last = torch.where(there, index, -1).cummax(dim=-1).values
    before = torch.cat([torch.full_like(last[..., :1], -1), last[..., :-1]], dim=-1)
    quotients = torch.where(there, (index - before - 1) >> k[..., None], 0).sum(dim=-1)
    return count, k, _STREAM.size + _bits.rice_nbytes(count, quotients, k)
