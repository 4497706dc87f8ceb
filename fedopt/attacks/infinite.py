"""Numbers that are none: what a server has to turn away before it aggregates."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedopt.registry import declare


@declare(
    reference="Blanchard, El Mhamdi, Guerraoui, Stainer 2017, 'Machine Learning with Adversaries: Byzantine Tolerant"
    " Gradient Descent', lemma 1, in the extreme",
    knowledge="nothing",
    examples=({}, {"value": "nan"}),
    exceptions={
        "shape": "it sends what is not finite on purpose, so that a server that does not look is seen to fail",
        "knowledge": "row i depends on no row at all, but the law takes differences, and those of infinities are NaN",
    },
)
def infinite(rows: Tensor, *, value: Literal["inf", "nan"] = "inf") -> Tensor:
    """Infinity or NaN in every coordinate.

        sent_i = value

    The engine rejects answers that are not finite, so under it an attacker of this kind is a client that is absent; the
    attack is there to show that.

    rows: `[b, d]`, of which the shape alone is used.
    value: "inf" or "nan".
    Returns `[b, d]`.

    Differences from the paper: it shows that one client can move a linear rule anywhere, with finite vectors.
    """
    return torch.full_like(rows, math.inf if value == "inf" else math.nan)
