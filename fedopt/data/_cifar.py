"""The files of CIFAR-10 and CIFAR-100 as published: pickled batches or binary ones, in a folder or a tar archive.

A pickle is a program. The reader here runs only what the published batches consist of: dictionaries, lists, strings,
numbers, and arrays of unsigned bytes, which it rebuilds itself; any other name in the file is refused.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedopt.data._paths import wrong_file

PIXELS = 3 * 32 * 32
WHERE = "data.path"


class Layout(NamedTuple):
    """Names in one of the two data sets."""

    train: tuple[str, ...]
    test: str
    pickled_meta: str
    pickled_names: bytes
    pickled_labels: bytes
    binary_meta: str
    label_bytes: int
    """Bytes of labels before each image of the binary form."""
    label_at: int
    """Which of these is the label wanted."""


def read(path: Path, layout: Layout) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
    """The training and the test part, each images `[S, 3, 32, 32]` uint8 and labels `[S]`, and the classes' names."""
    files = _files(path, layout)
    if layout.test in files:
        names = _pickled_names(path, files, layout)
        parts = [_pickled(path, name, files, layout) for name in (*layout.train, layout.test)]
    elif f"{layout.test}.bin" in files:
        names = tuple(_content(path, files, layout.binary_meta).decode("ascii", "replace").split())
        parts = [_binary(path, f"{name}.bin", files, layout) for name in (*layout.train, layout.test)]
    else:
        expected = f"{', '.join((*layout.train, layout.test))} (or the same with .bin)"
        raise wrong_file(path, WHERE, expected, ", ".join(sorted(files)) or "no file")
    for _, y in parts:
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < len(names):
            found = f"labels {int(y.min())} to {int(y.max())}"
            raise wrong_file(path, WHERE, f"labels 0 to {len(names) - 1}, one for each class name", found)
    x, y = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    return (x, y), parts[-1], names


def _files(path: Path, layout: Layout) -> dict[str, Callable[[], bytes]]:
    """How to read each file of interest, by its name without folders."""
    batches = (*layout.train, layout.test)
    wanted = {*batches, *(f"{name}.bin" for name in batches), layout.pickled_meta, layout.binary_meta}
    if path.is_dir():
        return {entry.name: entry.read_bytes for entry in path.iterdir() if entry.name in wanted}
    held: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                stream = archive.extractfile(member) if name in wanted and member.isfile() else None
                if stream is not None:
                    held[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        expected = "the folder or the whole tar archive of the data set"
        raise wrong_file(path, WHERE, expected, f"{type(error).__name__}: {error}") from error
    return {name: _constant(content) for name, content in held.items()}


def _constant(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _content(path: Path, files: dict[str, Callable[[], bytes]], name: str) -> bytes:
    if name not in files:
        raise wrong_file(path, WHERE, f"a file {name}", ", ".join(sorted(files)))
    return files[name]()


def _binary(path: Path, name: str, files: dict[str, Callable[[], bytes]], layout: Layout) -> tuple[Tensor, Tensor]:
    raw = _content(path, files, name)
    record = layout.label_bytes + PIXELS
    if not raw or len(raw) % record:
        raise wrong_file(path / name, WHERE, f"records of {record} bytes", f"{len(raw)} bytes")
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, record)
    return rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32), rows[:, layout.label_at].to(torch.int64)


def _pickled_names(path: Path, files: dict[str, Callable[[], bytes]], layout: Layout) -> tuple[str, ...]:
    meta = unpickle(_content(path, files, layout.pickled_meta), path / layout.pickled_meta)
    names = meta.get(layout.pickled_names)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        expected = f"a list '{layout.pickled_names.decode()}'"
        raise wrong_file(path / layout.pickled_meta, WHERE, expected, f"keys {sorted(map(str, meta))}")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names)


def _pickled(path: Path, name: str, files: dict[str, Callable[[], bytes]], layout: Layout) -> tuple[Tensor, Tensor]:
    batch = unpickle(_content(path, files, name), path / name)
    data, labels = batch.get(b"data"), batch.get(layout.pickled_labels)
    pixels = data.value if isinstance(data, _Array) else None
    expected = f"'data' [S, {PIXELS}] and a list '{layout.pickled_labels.decode()}' of S numbers"
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not isinstance(labels, list):
        raise wrong_file(path / name, WHERE, expected, f"keys {sorted(map(str, batch))}")
    if len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        raise wrong_file(path / name, WHERE, expected, f"{len(pixels)} images and {len(labels)} labels")
    x = torch.from_numpy(np.array(pixels)).reshape(-1, 3, 32, 32)
    return x, torch.tensor(labels, dtype=torch.int64)


class _Array:
    """An array of unsigned bytes, rebuilt from what numpy writes into a pickle, without numpy's own unpickling."""

    value: np.ndarray | None = None

    def __init__(self, *arguments: Any) -> None:
        """The arguments stand for an empty array, which the state replaces."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array of something else than bytes")
        self.value = np.frombuffer(raw, dtype=np.uint8).reshape(tuple(shape), order="F" if fortran else "C")


class _Dtype:
    """numpy's dtype, of which only `u1` is admitted."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of type {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which single bytes do not have."""


_ADMITTED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is refused")
        return _ADMITTED[module, name]


def unpickle(content: bytes, path: Path) -> dict[Any, Any]:
    """The dictionary of bytes, lists, numbers and byte arrays in a pickle; anything else is a ConfigError."""
    expected = "a pickled dictionary of lists, strings and arrays of bytes"
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in any way
        raise wrong_file(path, WHERE, expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise wrong_file(path, WHERE, expected, type(value).__name__)
    return value
