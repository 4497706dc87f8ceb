"""Label flipping: an attacker trains honestly on wrong labels."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.types import FedoptError

Class = Annotated[int | None, pydantic.Field(ge=0)]


def consistent(mode: str, source: int | None, target: int | None) -> None:
    """Raises ValueError unless source and target are given together with `mode = "targeted"`, and differ."""
    if mode != "targeted" and (source, target) != (None, None):
        raise ValueError(f'source and target go with mode = "targeted"; mode = "{mode}" was given')
    if mode == "targeted" and (source is None or target is None or source == target):
        raise ValueError(f'mode = "targeted" needs two different classes; {source = }, {target = } were given')


@declare(
    reference="Tolpegin, Truex, Gursoy, Liu 2020, 'Data Poisoning Attacks Against Federated Learning Systems' (the mode"
    " targeted)",
    knowledge="data",
    check=consistent,
    examples=({}, {"mode": "random"}, {"mode": "targeted", "source": 1, "target": 0}, {"mode": "cyclic"}),
)
def label_flip(
    labels: Tensor,
    *,
    classes: int,
    key: Tensor,
    mode: Literal["other", "random", "targeted", "cyclic"] = "other",
    source: Class = None,
    target: Class = None,
) -> Tensor:
    """Wrong labels in place of the right ones, drawn with the client's key.

        other      y -> one of the C - 1 other classes, uniformly
        random     y -> one of all C classes, uniformly, the right one included
        targeted   source -> target, all others stay
        cyclic     y -> (y + 1) mod C

    labels: class indices of any shape, int64.
    classes: C, the number of classes of the task.
    source, target: classes, for `mode = "targeted"` alone.
    Returns labels of the same shape.
    Raises ValueError when source and target do not fit the mode, FedoptError when they or the labels are no classes
    of the task.
    """
    consistent(mode, source, target)
    _check(labels, classes, source, target)
    if mode == "other":
        return (labels + 1 + _draw(key, labels, classes - 1)) % classes
    if mode == "random":
        return _draw(key, labels, classes)
    if mode == "targeted" and source is not None and target is not None:
        return labels.masked_fill(labels.eq(source), target)
    return (labels + 1) % classes


def _draw(key: Tensor, labels: Tensor, below: int) -> Tensor:
    return (keys.uniform(key, *labels.shape, dtype=torch.float64) * below).to(labels.dtype)


def _check(labels: Tensor, classes: int, source: int | None, target: int | None) -> None:
    if labels.is_floating_point() or classes < 2:
        raise FedoptError(
            f"label_flip needs class labels of a task with 2 classes or more; labels of type {labels.dtype} and"
            f" {classes} classes were given; remove this attack or use another data set"
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise FedoptError(
            f"label_flip needs labels in 0 ... {classes - 1}; they reach from {int(labels.min())} to"
            f" {int(labels.max())}"
        )
    for name, value in {"source": source, "target": target}.items():
        if value is not None and value >= classes:
            raise FedoptError(
                f"label_flip: {name} = {value} is no class of this task; set attack.{name} to one of"
                f" 0 ... {classes - 1}"
            )
