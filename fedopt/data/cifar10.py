"""CIFAR-10 from the files as published."""

from __future__ import annotations

from fedopt.data._cifar import WHERE, Layout, read
from fedopt.data._paths import data_path
from fedopt.data._pixels import Normalise, floats
from fedopt.data._values import Dataset, Split
from fedopt.registry import declare

_LAYOUT = Layout(
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    pickled_meta="batches.meta",
    pickled_names=b"label_names",
    pickled_labels=b"labels",
    binary_meta="batches.meta.txt",
    label_bytes=1,
    label_at=0,
)


@declare(reference="Krizhevsky 2009, Learning multiple layers of features from tiny images")
def cifar10(*, path: str = "cifar-10-batches-py", normalise: Normalise = "unit") -> Dataset:
    """50,000 training and 10,000 test images in 10 classes: x `[S, 3, 32, 32]` float32, y `[S]`.

    path: below FEDOPT_DATA, the folder `cifar-10-batches-py` or `cifar-10-batches-bin`, or the archive of either.
    normalise: `unit` scales to [0, 1], `standard` to mean 0 and deviation 1 in each channel of the training images,
        `none` keeps 0 to 255.

    Raises ConfigError for missing, truncated or other files, and for a pickle that holds more than plain data.
    """
    (x, y), (x_test, y_test), names = read(data_path(path, WHERE), _LAYOUT)
    scaled, scaled_test = floats(x, x_test, normalise)
    return Dataset(scaled, y, names, test=None if scaled_test is None else Split(scaled_test, y_test))
