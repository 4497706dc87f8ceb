"""Laws of data sources."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedopt import keys
from fedopt.data import Dataset, Split, federate, registry
from fedopt.registry import Component, validate
from fedopt.testing._laws import found, require, run


def check_source(component: Component | str, /, **options: object) -> None:
    """Measure the laws of a data source, with these options.

    shape        x `[S, ...]` and y `[S, ...]` agree, also in the test set; x is floating or int64 tokens
    labels       class indices below the number of class names, or floats for a regression
    finite       no NaN and no infinity
    tokens       0 ... vocabulary - 1, where the samples are token ids
    groups       every sample has a group with a name, and every group a sample
    determinism  the source gives the same data again
    federation   the data can be spread over clients

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    given = validate(component, options, "data")
    data: Dataset = component(**given)
    splits = [Split(data.x, data.y), *([data.test] if data.test is not None else [])]
    run(
        component,
        {
            "shape": lambda: _each(splits, _shape, data),
            "labels": lambda: _each(splits, _labels, data),
            "finite": lambda: _each(splits, _finite, data),
            "tokens": lambda: _each(splits, _tokens, data),
            "groups": lambda: _groups(data),
            "determinism": lambda: _determinism(data, component(**given)),
            "federation": lambda: _federation(data),
        },
    )


def _each(splits: list[Split], law: Callable[[Split, Dataset], None], data: Dataset) -> None:
    for split in splits:
        law(split, data)


def _shape(split: Split, data: Dataset) -> None:
    require(split.x.shape[0] == split.y.shape[0] > 0, f"{split.x.shape[0]} samples and {split.y.shape[0]} labels")
    require(split.x.shape[1:] == data.x.shape[1:], "samples of the test set have another shape")
    known = split.x.is_floating_point() or split.x.dtype == torch.int64
    require(known, f"x is {split.x.dtype}; floating numbers or int64 tokens are needed")


def _labels(split: Split, data: Dataset) -> None:
    if data.task == "regression":
        require(split.y.is_floating_point(), f"y of a regression is {split.y.dtype}; floats are needed")
        return
    require(split.y.dtype == torch.int64, f"y is {split.y.dtype}; int64 class indices are needed")
    low, high = int(split.y.min()), int(split.y.max())
    require(low >= 0 and high < len(data.class_names), f"labels {low} ... {high} of {len(data.class_names)} classes")


def _finite(split: Split, data: Dataset) -> None:
    for name, value in (("x", split.x), ("y", split.y)):
        require(not value.is_floating_point() or bool(torch.isfinite(value).all()), f"{name} holds NaN or Inf")


def _tokens(split: Split, data: Dataset) -> None:
    if data.vocabulary is not None:
        low, high = int(split.x.min()), int(split.x.max())
        require(low >= 0 and high < data.vocabulary, f"tokens {low} ... {high} of a vocabulary of {data.vocabulary}")


def _groups(data: Dataset) -> None:
    if data.groups is None:
        require(not data.group_names, "group names without groups")
        return
    require(data.groups.shape == (data.x.shape[0],), f"groups of shape {tuple(data.groups.shape)}")
    held = torch.unique(data.groups).tolist()
    require(held == list(range(len(data.group_names))), f"groups {held[:5]} ... and {len(data.group_names)} names")
    require(len(set(data.group_names)) == len(data.group_names), "two groups have one name")


def _determinism(data: Dataset, again: Dataset) -> None:
    for one, other in zip(_tensors(data), _tensors(again), strict=True):
        require(torch.equal(one, other), "the source gave other data when it was asked again")


def _tensors(data: Dataset) -> list[Tensor]:
    test = [] if data.test is None else [data.test.x, data.test.y]
    return [data.x, data.y, *([] if data.groups is None else [data.groups]), *test]


def _federation(data: Dataset) -> None:
    federation = federate(data, clients=3, key=keys.root(0))
    require(int(federation.splits["train"].sizes.sum()) > 0, "nothing is left to train on")
