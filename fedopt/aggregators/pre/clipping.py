"""Static clipping: no row is longer than a bound."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.aggregators._rows import lengths, shrinking
from fedopt.registry import declare


@declare(
    reference="Sun, Kairouz, Suresh, McMahan 2019, 'Can You Really Backdoor Federated Learning?', arXiv 1911.07963,"
    " norm thresholding",
    rows="same",
    examples=({"bound": 1.0},),
)
def clipping(updates: Tensor, *, bound: Annotated[float, pydantic.Field(gt=0.0)]) -> Tensor:
    """Each row, scaled down to a fixed bound where it is longer.

        yᵢ = xᵢ min(1, B / ‖xᵢ‖)

    updates: `[n, d]`.
    bound: B > 0.
    Returns `[n, d]`.

    Differences from the paper: none.
    """
    return updates * shrinking(lengths(updates), bound).to(updates.dtype)[:, None]
