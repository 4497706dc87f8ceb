"""Majority vote on the sign of every coordinate."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.registry import declare

_BLOCK = 1 << 20  # entries at a time


def votes(updates: Tensor) -> Tensor:
    """Σᵢ sign(xᵢⱼ) for each coordinate: `updates [n, d]` -> `[d]`, over blocks of columns."""
    columns = max(1, _BLOCK // updates.shape[0])
    return torch.cat([block.sign().sum(dim=0) for block in updates.split(columns, dim=1)])


@declare(
    reference="Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, 'signSGD with Majority Vote is Communication"
    " Efficient and Fault Tolerant', algorithm 1",
    scope="coordinate",
    examples=({"scale": 0.5},),
    exceptions={"translation": "votes are the signs of the updates"},
)
def sign_vote(updates: Tensor, *, scale: Annotated[float, pydantic.Field(gt=0.0)]) -> Tensor:
    """In every coordinate, a step of one size to the side that most updates are on.

        deltaⱼ = scale · sign(Σᵢ sign(xᵢⱼ)),    sign(0) = 0

    However large an update is, it has one vote.

    updates: `[n, d]`.
    scale: size of the step, the paper's η.
    Returns `[d]`, entries -scale, 0 and scale.

    Differences from the paper: clients may send anything, and their signs are taken here; its momentum and weight decay
    belong to the local optimizer. A tied vote moves nothing.
    """
    return scale * votes(updates).sign()
