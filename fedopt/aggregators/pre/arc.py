"""Adaptive robust clipping: the longest rows are scaled down to the longest of the others."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.aggregators._rows import lengths, shrinking
from fedopt.registry import declare
from fedopt.types import FedoptError


@declare(
    reference="Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan 2025, 'Adaptive Gradient Clipping for Robust"
    " Federated Learning', arXiv 2405.14432, adaptive robust clipping",
    rows="same",
    requires="n >= 2f + 1",
    admits=lambda n, f: n >= 2 * f + 1,
    examples=({"f": 2},),
)
def arc(updates: Tensor, *, f: Annotated[int, pydantic.Field(ge=0)]) -> Tensor:
    """The k longest rows are scaled down to the length of the next longest.

        k = ⌊2 (f/n)(n - f)⌋,    yᵢ = xᵢ min(1, B / ‖xᵢ‖),    B = the (k + 1)-th largest of the ‖xᵢ‖

    updates: `[n, d]`.
    f: number of attackers to withstand; 0 leaves the rows as they are.
    Returns `[n, d]`.
    Raises FedoptError unless n >= 2f + 1.

    Differences from the paper: none; k is computed in whole numbers, where floating point can fall one short.
    """
    n = updates.shape[0]
    if n < 2 * f + 1:
        raise FedoptError(f"arc with f = {f} needs n >= 2f + 1 = {2 * f + 1} rows, got {n}")
    norms = lengths(updates)
    bound = norms.sort(descending=True).values[2 * f * (n - f) // n]
    return updates * shrinking(norms, bound).to(updates.dtype)[:, None]
