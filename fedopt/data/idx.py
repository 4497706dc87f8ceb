"""Images in the IDX format of MNIST, Fashion-MNIST, KMNIST and EMNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from fedopt.data._paths import data_path, wrong_file
from fedopt.data._pixels import Normalise, floats
from fedopt.data._values import Dataset, Split
from fedopt.registry import ConfigError, declare


@declare(reference="LeCun, Cortes, Burges, The MNIST database of handwritten digits, section 'File formats'")
def idx(
    *,
    images: str,
    labels: str,
    test_images: str | None = None,
    test_labels: str | None = None,
    normalise: Normalise = "unit",
) -> Dataset:
    """Images and labels from IDX files, gzipped or raw: x `[S, 1, H, W]` float32, y `[S]`.

    images, labels: files below FEDOPT_DATA, such as `mnist/train-images-idx3-ubyte.gz`.
    test_images, test_labels: the publisher's test files, which become the test set.
    normalise: `unit` scales to [0, 1], `standard` to mean 0 and deviation 1 over the training images, `none` keeps
        0 to 255.

    Raises ConfigError for a missing or truncated file and for one of another format.
    """
    x, y = _pair(images, labels, "data.images", "data.labels")
    if (test_images is None) != (test_labels is None):
        missing = "test_images" if test_images is None else "test_labels"
        raise ConfigError(f"data.{missing}", "missing; test_images and test_labels are given together or not at all")
    test: tuple[Tensor, Tensor] | None = None
    if test_images is not None and test_labels is not None:
        test = _pair(test_images, test_labels, "data.test_images", "data.test_labels")
    scaled, scaled_test = floats(x, test[0] if test else None, normalise)
    classes = 1 + max(int(part.max()) for part in (y, *(test[1:] if test else ())))
    names = tuple(str(c) for c in range(classes))
    own_test = Split(scaled_test, test[1]) if test and scaled_test is not None else None
    return Dataset(scaled, y, names, test=own_test)


def _pair(images: str, labels: str, images_where: str, labels_where: str) -> tuple[Tensor, Tensor]:
    image_path, label_path = data_path(images, images_where), data_path(labels, labels_where)
    x = _read(image_path, 3, images_where, "images")
    y = _read(label_path, 1, labels_where, "labels")
    if len(x) != len(y):
        raise wrong_file(label_path, labels_where, f"{len(x)} labels, one for each image of {image_path}", str(len(y)))
    return x[:, None], y.to(torch.int64)


def _read(path: Path, dimensions: int, where: str, what: str) -> Tensor:
    """The array of unsigned bytes in an IDX file: 0 0 8 n, n big-endian 32-bit sizes, the bytes."""
    expected = f"an IDX file of {what} (unsigned bytes in {dimensions} dimension{'s' * (dimensions > 1)})"
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise wrong_file(path, where, expected, f"a broken or truncated gzip stream ({error})") from error
    head = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if raw[:4] != magic:
        raise wrong_file(path, where, f"{expected}, whose first bytes are {magic.hex()}", raw[:4].hex() or "no bytes")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4)]
    if len(raw) - head != math.prod(shape) or not raw[head:]:
        size = " x ".join(str(s) for s in shape)
        raise wrong_file(path, where, f"{expected}, {size} bytes after its header", f"{max(len(raw) - head, 0)} bytes")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=head).reshape(shape)
