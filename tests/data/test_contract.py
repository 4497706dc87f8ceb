"""The laws of data sources over every source that can be built here, and faulty sources that they catch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedopt.data import Dataset, registry
from fedopt.testing import check_source

OPTIONS: dict[str, tuple[str | None, list[dict[str, Any]]]] = {
    "digits": (None, [{}]),
    "synthetic": (None, [{"devices": 5}, {"iid": True, "devices": 4, "classes": 3}]),
    "idx": (
        "mnist10k",
        [{"images": "mnist10k/t10k-images-idx3-ubyte.gz", "labels": "mnist10k/t10k-labels-idx1-ubyte.gz"}],
    ),
    "libsvm": ("libsvm", [{"file": "libsvm/mushrooms"}, {"file": "libsvm/a9a", "features": 123}]),
    "ecg": ("mitdb", [{"records": ["101", "106", "114"], "held_out": ["114"], "decimate": 4}]),
    "plays": ("shakespeare", [{"target": "last"}, {"length": 20, "min_samples": 10}]),
    "text": ("sst2", [{"file": "sst2/train.tsv", "test_file": "sst2/dev.tsv", "length": 8}]),
}
ELSEWHERE = {
    "cifar10": "test_cifar.py",
    "cifar100": "test_cifar.py",
    "huggingface": "test_huggingface.py",
    "quadratics": "tests/similarity/test_verification.py",
}
"""Sources whose files are made by tests of their own."""


def test_every_source_is_tested() -> None:
    assert {*OPTIONS, *ELSEWHERE} == set(registry.builtin())


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, (_, many) in OPTIONS.items() for o in many], ids=str)
def test_the_laws_hold(name: str, options: dict[str, Any], fedopt_data: Callable[[str], Path]) -> None:
    folder, _ = OPTIONS[name]
    if folder is not None:
        fedopt_data(folder)
    check_source(name, **options)


def sound() -> Dataset:
    x = torch.arange(24.0).reshape(12, 2)
    return Dataset(x, torch.arange(12) % 2, ("a", "b"), torch.arange(12) % 3, ("u", "v", "w"))


DRAWS = iter(range(100))
FAULTS: list[tuple[str, Callable[[], Dataset]]] = [
    ("shape", lambda: sound()._replace(y=torch.zeros(11, dtype=torch.int64))),
    ("shape", lambda: sound()._replace(x=torch.zeros(12, 2, dtype=torch.int32))),
    ("labels", lambda: sound()._replace(y=torch.arange(12))),
    ("labels", lambda: sound()._replace(task="regression")),
    ("finite", lambda: sound()._replace(x=torch.full((12, 2), float("nan")))),
    ("tokens", lambda: sound()._replace(x=torch.arange(24).reshape(12, 2), vocabulary=23)),
    ("groups", lambda: sound()._replace(group_names=("u", "v"))),
    ("groups", lambda: sound()._replace(group_names=("u", "v", "v"))),
    ("determinism", lambda: sound()._replace(x=torch.full((12, 2), float(next(DRAWS))))),
]


@pytest.mark.parametrize(("law", "source"), FAULTS)
def test_a_faulty_source_is_caught(law: str, source: Callable[[], Dataset]) -> None:
    with pytest.raises(AssertionError, match=f"breaks the law '{law}'"):
        check_source(source)
    check_source(sound)
