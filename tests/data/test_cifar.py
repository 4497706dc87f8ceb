"""CIFAR in the forms as published: pickles of Python 2, binary batches, archives; and pickles that are refused."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedopt.data import Dataset
from fedopt.data.cifar10 import cifar10
from fedopt.data.cifar100 import cifar100
from fedopt.registry import ConfigError

NAMES = ["airplane", "automobile", "bird"]


def word(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python2(value: Any) -> bytes:
    """Protocol 2 as Python 2 writes it: bytes are its plain strings, arrays name numpy.core."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(python2(v) for v in value) + b"e"
    if isinstance(value, bytes):
        return word(value)
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    raw = value.tobytes("A")
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"".join(python2(s) for s in value.shape)
        + b"\x86cnumpy\ndtype\n"
        + word(value.dtype.str[1:].encode())
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88" if np.isfortran(value) else b"\x89")
        + b"T"
        + struct.pack("<I", len(raw))
        + raw
        + b"tb"
    )


def dump(value: Any) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def pixels(first: int, n: int) -> np.ndarray:
    return np.array([[(first + 31 * s + 7 * p) % 256 for p in range(3072)] for s in range(n)], dtype=np.uint8)


BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar10_pickled(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(BATCHES):
        data = pixels(i, 2)
        batch = {b"batch_label": b"x", b"labels": [i % 3, 2], b"data": np.asfortranarray(data) if i == 1 else data}
        (folder / name).write_bytes(dump(batch))
    (folder / "batches.meta").write_bytes(dump({b"label_names": [n.encode() for n in NAMES], b"num_vis": 3072}))


def cifar10_binary(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(BATCHES):
        rows = pixels(i, 2)
        (folder / f"{name}.bin").write_bytes(bytes([i % 3]) + bytes(rows[0]) + bytes([2]) + bytes(rows[1]))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")


def check10(got: Dataset) -> None:
    assert got.x.shape == (10, 3, 32, 32) and got.x.dtype == torch.float32 and got.class_names == tuple(NAMES)
    assert got.y.tolist() == [0, 2, 1, 2, 2, 2, 0, 2, 1, 2]
    for i in range(5):
        for s in range(2):
            for c, row, column in ((0, 0, 0), (1, 3, 5), (2, 31, 31)):
                assert got.x[2 * i + s, c, row, column] == (i + 31 * s + 7 * (c * 1024 + row * 32 + column)) % 256
    assert got.test is not None and got.test.x.shape == (2, 3, 32, 32) and got.test.y.tolist() == [2, 2]
    assert got.test.x[1, 2, 1, 2] == (5 + 31 + 7 * (2048 + 34)) % 256


def test_cifar10_in_all_published_forms(tmp_path: Path) -> None:
    cifar10_pickled(tmp_path / "cifar-10-batches-py")
    cifar10_binary(tmp_path / "cifar-10-batches-bin")
    for name in ("cifar-10-batches-py", "cifar-10-batches-bin"):
        check10(cifar10(path=str(tmp_path / name), normalise="none"))
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / name, name)
        check10(cifar10(path=str(tmp_path / f"{name}.tar.gz"), normalise="none"))
    unit = cifar10(path=str(tmp_path / "cifar-10-batches-py"))
    assert unit.x[0, 0, 0, 1].item() == pytest.approx(7 / 255)


def test_cifar100_fine_and_coarse(tmp_path: Path) -> None:
    names = {b"fine_label_names": [b"apple", b"bear", b"cod"], b"coarse_label_names": [b"fruit", b"animal"]}
    pickled, binary = tmp_path / "p", tmp_path / "b"
    pickled.mkdir()
    binary.mkdir()
    (pickled / "meta").write_bytes(dump(names))
    for key, words in names.items():
        (binary / f"{key.decode()}.txt").write_bytes(b"\n".join(words))
    for i, name in enumerate(("train", "test")):
        data, fine, coarse = pixels(i, 3), [0, 1, 2], [0, 1, 1]
        (pickled / name).write_bytes(dump({b"data": data, b"fine_labels": fine, b"coarse_labels": coarse}))
        rows = [bytes([c, f]) + bytes(row) for c, f, row in zip(coarse, fine, data, strict=True)]
        (binary / f"{name}.bin").write_bytes(b"".join(rows))
    for folder in (pickled, binary):
        fine, coarse = cifar100(path=str(folder)), cifar100(path=str(folder), labels="coarse")
        assert fine.y.tolist() == [0, 1, 2] and fine.class_names == ("apple", "bear", "cod")
        assert coarse.y.tolist() == [0, 1, 1] and coarse.class_names == ("fruit", "animal")
        assert fine.x[2, 1, 0, 3].item() == pytest.approx(((31 * 2 + 7 * 1027) % 256) / 255)
        assert fine.test is not None and fine.test.x[0, 0, 0, 0].item() == pytest.approx(1 / 255)


def test_a_batch_written_by_python_3_is_read(tmp_path: Path) -> None:
    cifar10_pickled(tmp_path)
    batch = {b"labels": [0, 2], b"data": pixels(0, 2)}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=4))
    check10(cifar10(path=str(tmp_path), normalise="none"))


class Command:
    """Makes a folder when it is unpickled the ordinary way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, protocol: int) -> None:
    cifar10_pickled(tmp_path)
    attack = pickle.dumps({b"labels": [0, 1], b"data": Command(tmp_path / "trap")}, protocol=protocol)
    for name in ("data_batch_3", "batches.meta"):
        cifar10_pickled(tmp_path)
        (tmp_path / name).write_bytes(attack)
        with pytest.raises(
            ConfigError, match=rf"data\.path: .*{name} .*(posix\.mkdir|_codecs\.encode), which is refused"
        ):
            cifar10(path=str(tmp_path))
    assert not (tmp_path / "trap").exists()
    pickle.loads(attack)
    assert (tmp_path / "trap").exists()  # the trap works


@pytest.mark.parametrize(
    "name", ["builtins\neval", "builtins\ngetattr", "numpy\nload", "numpy.core.multiarray\nfromfile", "_codecs\nencode"]
)
def test_no_other_name_is_admitted(tmp_path: Path, name: str) -> None:
    cifar10_pickled(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(ConfigError, match="which is refused"):
        cifar10(path=str(tmp_path))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = dump({b"labels": [0, 1], b"data": pixels(0, 2)})
    for content, found in (
        (good[:-500], "UnpicklingError|EOFError"),
        (good[:40], "UnpicklingError|EOFError"),
        (b"", "EOFError"),
        (b"<html>not found</html>", "found"),
        (dump([1]), "found list"),
        (dump({b"labels": [0], b"data": pixels(0, 2)}), "found 2 images and 1 labels"),
        (dump({b"labels": [0, 9], b"data": pixels(0, 2)}), "expected labels 0 to 2.*found labels 0 to 9"),
        (dump({b"data": pixels(0, 2)}), "found keys"),
        (dump({b"labels": [0, 1], b"data": [1]}), "found keys"),
        (dump({b"labels": [0, 1], b"data": pixels(0, 2)[:, :10]}), "found keys"),
        (dump({b"labels": [0, 1], b"data": pixels(0, 2).astype(np.float64)}), "array of type b'f8'"),
        (
            good.replace(b"J\x00\x0c\x00\x00\x86", b"J\x00\x0d\x00\x00\x86"),
            "ValueError",
        ),  # a shape that is not its size
    ):
        cifar10_pickled(tmp_path)
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"(?s)data\.path: .*({found})"):
            cifar10(path=str(tmp_path))
    cifar10_pickled(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(ConfigError, match=r"expected a file data_batch_4, found batches\.meta"):
        cifar10(path=str(tmp_path))


def test_damaged_binary_files_and_archives_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    cifar10_binary(folder)
    (folder / "data_batch_2.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ConfigError, match=r"data_batch_2\.bin .*records of 3073 bytes, found 3072 bytes"):
        cifar10(path=str(folder))
    with pytest.raises(ConfigError, match=r"expected data_batch_1, .*found no file"):
        (tmp_path / "none").mkdir()
        cifar10(path=str(tmp_path / "none"))
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(ConfigError, match=r"page .*expected the folder or the whole tar archive"):
        cifar10(path=str(tmp_path / "page"))
    cifar10_binary(folder)
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"cut\.tar\.gz .*expected the folder or the whole tar archive"):
        cifar10(path=str(tmp_path / "cut.tar.gz"))
