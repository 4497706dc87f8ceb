"""Two aggregation rules outside fedopt, and a third one with a fault.

`midrange` is an entry point, so a config names it as if it were built in; `clipped_mean` is reached by its import path,
`name = "fedopt_plugin_example:clipped_mean"`.
"""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.registry import declare


@declare(scope="coordinate")
def midrange(updates: Tensor) -> Tensor:
    """(max + min) / 2 in every coordinate; `updates [n, d]` -> `[d]`."""
    return (updates.amax(dim=0) + updates.amin(dim=0)) / 2


@declare(
    scope="vector",
    examples=({"tau": 1.0},),
    exceptions={"translation": "length is measured from zero, so a shift changes which updates are long"},
)
def clipped_mean(updates: Tensor, *, tau: Annotated[float, pydantic.Field(gt=0.0)]) -> Tensor:
    """(1/n) Σᵢ xᵢ min(1, τ/‖xᵢ‖); `updates [n, d]` -> `[d]`."""
    share = (tau / torch.linalg.vector_norm(updates, dim=1)).clamp(max=1.0)
    return (share[:, None] * updates).mean(dim=0)


@declare(scope="vector", requires="n >= f + 1", admits=lambda n, f: n >= f + 1)
def trusting_mean(updates: Tensor, *, f: int) -> Tensor:
    """The mean of all but the last f rows, with the fault that attackers need not come last."""
    return updates[: updates.shape[0] - f].mean(dim=0)
