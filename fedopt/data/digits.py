"""The 8x8 handwritten digits that come with scikit-learn."""

from __future__ import annotations

import importlib

import torch

from fedopt.data._values import Dataset
from fedopt.registry import declare


@declare(reference="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; scikit-learn load_digits")
def digits() -> Dataset:
    """1,797 real images of the digits 0 to 9, without any file: x `[1797, 1, 8, 8]` float32 in [0, 1], y `[1797]`."""
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32)[:, None] / 16.0
    return Dataset(x, torch.from_numpy(bunch.target).to(torch.int64), tuple(str(c) for c in range(10)))
