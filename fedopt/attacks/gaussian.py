"""Gaussian noise in place of an update, or on top of one."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare


def noise(rows: Tensor, key: Tensor) -> Tensor:
    """Standard normal numbers in the shape, dtype and place of `rows [b, d]`; row i is the same whatever b is."""
    # a narrower type rounds uniform numbers up to 1, and their logarithm is taken
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return keys.normal(key, *rows.shape, dtype=dtype).to(rows)


@declare(
    reference="Blanchard, El Mhamdi, Guerraoui, Stainer 2017, 'Machine Learning with Adversaries: Byzantine Tolerant"
    " Gradient Descent', experiments",
    knowledge="own",
    examples=({}, {"sigma": 0.1, "around": "own"}),
)
def gaussian(
    own: Tensor,
    *,
    key: Tensor,
    sigma: Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)] = 1.0,
    around: Literal["zero", "own"] = "zero",
) -> Tensor:
    """Independent normal numbers.

        sent_i = centre_i + σ ε_i,    ε_i ~ N(0, I),    centre_i = 0 or own_i

    own: the attackers' honest updates `[b, d]`.
    sigma: standard deviation σ of each coordinate.
    around: "zero" forgets the honest update, "own" adds the noise to it.
    Returns `[b, d]`.

    Differences from the paper: it draws gradients with σ = 200; how large that is depends on the updates, so the
    default is 1.
    """
    drawn = sigma * noise(own, key)
    return drawn if around == "zero" else own + drawn
