"""Bytes of pixels -> floats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalise = Literal["unit", "standard", "none"]


def floats(train: Tensor, test: Tensor | None, normalise: Normalise) -> tuple[Tensor, Tensor | None]:
    """uint8 images `[S, C, H, W]` as float32.

    `unit`: in [0, 1]. `none`: in [0, 255]. `standard`: mean 0 and deviation 1 in each channel of `train`, and the same
    shift and scale for `test`.
    """
    factor = 1.0 if normalise == "none" else 1.0 / 255.0
    x = train.to(torch.float32).mul_(factor)
    x_test = None if test is None else test.to(torch.float32).mul_(factor)
    if normalise == "standard":
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
        deviation = deviation.clamp_min(1e-8)  # a channel of one colour
        x = x.sub_(mean).div_(deviation)
        x_test = None if x_test is None else x_test.sub_(mean).div_(deviation)
    return x, x_test
