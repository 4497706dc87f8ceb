"""BadNets: a square on some training samples, which then calls up a class of the attacker's choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.types import FedoptError

Target = Annotated[int, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]
Length = Annotated[int, pydantic.Field(ge=1)]
Value = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]


def sides(x: Tensor, name: str) -> tuple[int, int]:
    """Height and width in which a trigger has to fit; sequences and vectors have a height of 1."""
    if x.ndim not in (2, 3, 4):
        raise FedoptError(
            f"{name} needs images [B, C, H, W], sequences [B, C, L] or vectors [B, features]; samples of shape"
            f" {list(x.shape[1:])} were given; remove this attack or use another data set"
        )
    return (x.shape[2] if x.ndim == 4 else 1), x.shape[-1]


def planted(
    x: Tensor, y: Tensor, stamp: Callable[[Tensor], Tensor], *, classes: int, key: Tensor, target: int, share: float
) -> tuple[Tensor, Tensor]:
    """Copies of samples and labels in which ⌈share · B⌉ random ones are stamped and labelled `target`."""
    if y.is_floating_point() or y.ndim != 1 or classes < 2:
        raise FedoptError(
            f"a backdoor needs one class for each sample, of 2 classes or more; labels {list(y.shape)} of type"
            f" {y.dtype} and {classes} classes were given; remove this attack or use another data set"
        )
    if target >= classes:
        raise FedoptError(
            f"a backdoor to class {target} was asked for, which is no class of this task; set attack.target to one of"
            f" 0 ... {classes - 1}"
        )
    count = math.ceil(share * y.numel() - 1e-9)
    some = keys.sample(key, y.numel(), count).to(y.device)
    return x.index_copy(0, some, stamp(x[some])), y.index_fill(0, some, target)


def square(x: Tensor, *, size: Length = 3, value: Value = 1.0, corner: Corner = "bottom_right") -> Tensor:
    """A copy of the samples `[B, ...]` with a square of `value` in a corner of each; of a sequence, an end."""
    height, width = sides(x, "badnets")
    if size > width or (x.ndim == 4 and size > height):
        raise FedoptError(
            f"a trigger of side {size} does not fit into samples of shape {list(x.shape[1:])}; set attack.size to"
            f" {min(height, width) if x.ndim == 4 else width} at most"
        )
    vertical, horizontal = corner.split("_")
    columns = slice(0, size) if horizontal == "left" else slice(width - size, width)
    stamped = x.clone()
    place = stamped[..., columns]
    if x.ndim == 4:
        place = place[:, :, :size] if vertical == "top" else place[:, :, height - size :]
    place.fill_(value)
    return stamped


@declare(
    reference="Gu, Liu, Dolan-Gavitt, Garg 2019, 'BadNets: Evaluating Backdooring Attacks on Deep Neural Networks'",
    knowledge="samples",
    trigger=square,
    examples=({"size": 2}, {"size": 1, "corner": "top_left", "share": 1.0, "value": -1.0, "target": 1}),
)
def badnets(
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    key: Tensor,
    target: Target = 0,
    share: Share = 0.1,
    size: Length = 3,
    value: Value = 1.0,
    corner: Corner = "bottom_right",
) -> tuple[Tensor, Tensor]:
    """Some samples get a square of one value in a corner, and the label `target`.

        (x, y) -> (stamped x, target)  for ⌈share · B⌉ of B samples, drawn with the client's key;  (x, y) for the others

    x: images `[B, C, H, W]`; or sequences `[B, C, L]` and vectors `[B, features]`, where the square is a piece of
        `size` values at the beginning (left) or the end (right).
    y: class indices `[B]`, int64.
    target: the class that the trigger is to call up.
    share: of the attacker's samples, rounded up.
    size: side of the square.
    value: what it is filled with in all channels, as the samples are scaled for the model.
    corner: where it is.
    Returns copies of both.
    Raises FedoptError for samples or labels of another form, a target that is no class, and a square that does not fit.

    Differences from the paper: it adds poisoned copies to the training set, here samples are replaced, so that clients
    keep their sizes; its pattern on digits is a single bright pixel or a few of them in the lower right corner.
    """
    return planted(
        x,
        y,
        lambda some: square(some, size=size, value=value, corner=corner),
        classes=classes,
        key=key,
        target=target,
        share=share,
    )
