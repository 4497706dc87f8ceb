"""Tables in the text format of LIBSVM."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedopt.data._labels import class_indices, classes_of
from fedopt.data._paths import data_path, wrong_file
from fedopt.data._values import Dataset, Split
from fedopt.registry import ConfigError, declare


@declare(reference="Chang & Lin 2011, LIBSVM: a library for support vector machines, ACM TIST 2(3)")
def libsvm(
    *,
    file: str,
    test_file: str | None = None,
    features: int | None = None,
    task: Literal["classification", "regression"] = "classification",
) -> Dataset:
    """Rows `label index:value ...` as dense float32: x `[S, features]`; y `[S]`, classes in the order of the labels.

    file, test_file: files below FEDOPT_DATA, plain, .gz or .bz2; the second becomes the test set.
    features: number of columns; None takes the largest index found (a file may lack the last columns of its data set).
    task: `regression` keeps the labels as float32.

    Raises ConfigError for a missing or unreadable file, naming the first line that is not in the format, and when there
    are more columns than `features`.
    """
    path = data_path(file, "data.file")
    test_path = None if test_file is None else data_path(test_file, "data.test_file")
    paths = [p for p in (path, test_path) if p is not None]
    tables = _read(paths)
    found = max(x.shape[1] for x, _ in tables)
    if features is not None and found > features:
        raise ConfigError("data.features", f"{features} was given, and {' and '.join(map(str, paths))} has {found}")
    x, *x_test = (_dense(x, features or found) for x, _ in tables)
    if task == "regression":
        y, *y_test = (torch.from_numpy(np.asarray(y, dtype=np.float32)) for _, y in tables)
        names: tuple[str, ...] = ()
    else:
        labels, *labels_test = ([f"{v:g}" for v in y.tolist()] for _, y in tables)
        names = classes_of(labels)
        y = class_indices(labels, names, path, "data.file")
        y_test = [class_indices(more, names, paths[1], "data.test_file") for more in labels_test]
    test = Split(x_test[0], y_test[0]) if test_path is not None else None
    return Dataset(x, y, names, test=test, task=task)


def _dense(table: Any, features: int) -> Tensor:
    table.resize((table.shape[0], features))
    return torch.from_numpy(table.toarray())


def _read(paths: list[Path]) -> list[tuple[Any, Any]]:
    load = importlib.import_module("sklearn.datasets").load_svmlight_files
    try:
        # together, so that both count their columns from 0 or both from 1
        flat = load([str(p) for p in paths], dtype=np.float32)
    except (ValueError, OSError, EOFError, IndexError, OverflowError, zlib.error) as error:
        for path, where in zip(paths, ("data.file", "data.test_file"), strict=False):
            line = _first_wrong_line(path)
            if line:
                raise wrong_file(path, where, "lines 'label index:value index:value ...'", line) from error
        listing = " and ".join(map(str, paths))
        raise wrong_file(listing, "data.file", "lines 'label index:value index:value ...'", str(error)) from error
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    for path, where, (x, y) in zip(paths, ("data.file", "data.test_file"), pairs, strict=False):
        if not len(y):
            raise wrong_file(path, where, "lines 'label index:value index:value ...'", "no line")
        if not (np.isfinite(x.data).all() and np.isfinite(y).all()):
            raise wrong_file(path, where, "finite numbers", "NaN or an infinity")
    return pairs


def _first_wrong_line(path: Path) -> str | None:
    if path.suffix in (".gz", ".bz2"):
        return None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.split(b"#")[0].split()
            try:
                if words:
                    float(words[0])
                last = -1
                for word in words[1:]:
                    index, value = word.split(b":")
                    float(value)
                    if int(index) <= last:
                        raise ValueError("columns do not increase")
                    last = int(index)
            except ValueError:
                return f"line {number}: {line[:60].decode(errors='replace').rstrip()!r}"
    return None
