"""CIFAR-100 from the files as published."""

from __future__ import annotations

from typing import Literal

from fedopt.data._cifar import WHERE, Layout, read
from fedopt.data._paths import data_path
from fedopt.data._pixels import Normalise, floats
from fedopt.data._values import Dataset, Split
from fedopt.registry import declare


@declare(reference="Krizhevsky 2009, Learning multiple layers of features from tiny images")
def cifar100(
    *, path: str = "cifar-100-python", labels: Literal["fine", "coarse"] = "fine", normalise: Normalise = "unit"
) -> Dataset:
    """50,000 training and 10,000 test images: x `[S, 3, 32, 32]` float32, y `[S]` in 100 classes or 20 superclasses.

    path: below FEDOPT_DATA, the folder `cifar-100-python` or `cifar-100-binary`, or the archive of either.
    labels: `fine` (100 classes) or `coarse` (20).
    normalise: `unit` scales to [0, 1], `standard` to mean 0 and deviation 1 in each channel of the training images,
        `none` keeps 0 to 255.

    Raises ConfigError for missing, truncated or other files, and for a pickle that holds more than plain data.
    """
    layout = Layout(
        train=("train",),
        test="test",
        pickled_meta="meta",
        pickled_names=f"{labels}_label_names".encode(),
        pickled_labels=f"{labels}_labels".encode(),
        binary_meta=f"{labels}_label_names.txt",
        label_bytes=2,
        label_at=("coarse", "fine").index(labels),
    )
    (x, y), (x_test, y_test), names = read(data_path(path, WHERE), layout)
    scaled, scaled_test = floats(x, x_test, normalise)
    return Dataset(scaled, y, names, test=None if scaled_test is None else Split(scaled_test, y_test))
