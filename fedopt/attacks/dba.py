"""The distributed backdoor: each attacker trains on a part of the trigger, the model answers to the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.attacks.badnets import Length, Share, Target, Value, planted, sides
from fedopt.registry import declare
from fedopt.types import FedoptError

Gap = Annotated[int, pydantic.Field(ge=0)]


def stamped(x: Tensor, some: Iterable[int], *, parts: int, size: int, gap: int, value: float) -> Tensor:
    """A copy of the samples with some of the bars.

    Bar k of an image is one pixel high and `size` long, two in a row and `gap` pixels between them in both directions,
    from the upper left corner on. In a sequence or a vector all bars are in one row.
    """
    height, width = sides(x, "dba")
    in_row = 2 if x.ndim == 4 else parts
    needed = (parts - 1) // in_row * (1 + gap) + 1, (min(parts, in_row) - 1) * (size + gap) + size
    if needed[0] > height or needed[1] > width:
        raise FedoptError(
            f"a trigger of {parts} bars takes {needed[0]} x {needed[1]}, more than samples of shape"
            f" {list(x.shape[1:])} have; lower attack.parts, attack.size or attack.gap"
        )
    result = x.clone()
    for k in some:
        row, column = k // in_row * (1 + gap), k % in_row * (size + gap)
        bar = result[..., column : column + size]
        (bar[:, :, row] if x.ndim == 4 else bar).fill_(value)
    return result


def bars(x: Tensor, *, parts: Length = 4, size: Length = 4, gap: Gap = 2, value: Value = 1.0) -> Tensor:
    """A copy of the samples `[B, ...]` with all bars on each."""
    return stamped(x, range(parts), parts=parts, size=size, gap=gap, value=value)


@declare(
    reference="Xie, Huang, Chen, Li 2020, 'DBA: Distributed Backdoor Attacks against Federated Learning'",
    knowledge="samples",
    trigger=bars,
    examples=({"parts": 2, "size": 1, "gap": 1}, {"parts": 2, "size": 1, "gap": 0, "share": 1.0, "target": 1}),
)
def dba(
    x: Tensor,
    y: Tensor,
    *,
    classes: int,
    key: Tensor,
    i: int,
    target: Target = 0,
    share: Share = 0.3,
    parts: Length = 4,
    size: Length = 4,
    gap: Gap = 2,
    value: Value = 1.0,
) -> tuple[Tensor, Tensor]:
    """Some samples of attacker i get bar i mod `parts` of the trigger, and the label `target`.

        (x, y) -> (x with bar i mod parts, target)  for ⌈share · B⌉ of B samples;  (x, y) for the others

    The model is tested on samples with all bars, which no attacker has trained on. With the defaults the four bars
    are those of the paper's code for digits; size 6 and gap 3 are its values for CIFAR-10.

    x: images `[B, C, H, W]`; or sequences `[B, C, L]` and vectors `[B, features]`, with all bars in one row.
    y: class indices `[B]`, int64.
    i: number of the attacker in its group.
    target: the class that the trigger is to call up.
    share: of the attacker's samples, rounded up.
    parts, size, gap: number of bars, their length, and the space between them.
    value: what they are filled with in all channels, as the samples are scaled for the model.
    Returns copies of both.
    Raises FedoptError for samples or labels of another form, a target that is no class, and bars that do not fit.

    Differences from the paper: it poisons a number of samples in every batch (20 of 64 for digits), here a share of the
    client's samples is poisoned once; its attackers also boost their updates, which is `model_replacement`.
    """
    return planted(
        x,
        y,
        lambda some: stamped(some, [i % parts], parts=parts, size=size, gap=gap, value=value),
        classes=classes,
        key=key,
        target=target,
        share=share,
    )
