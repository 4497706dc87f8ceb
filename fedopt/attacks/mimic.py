"""Mimic: all attackers copy one honest client, whose data then count many times over."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.attacks.ipm import honest_mean
from fedopt.attacks.min_max import gram
from fedopt.registry import declare
from fedopt.types import FedoptError


def most_telling(honest: Tensor, mean: Tensor) -> int:
    """Row with the largest |⟨v, honest_i⟩|, v the direction of the largest variance of the rows."""
    products = gram(honest, mean, mean)
    h = honest.shape[0]
    variance, weights = torch.linalg.eigh(products[:h, :h])
    # v = Σ_j weights_j (honest_j - μ) / √variance; the length of v does not change who is first
    projections = (variance[-1] * weights[:, -1] + weights[:, -1] @ products[:h, h]).abs()
    # rounding must not decide between equals: two clients alike on both sides of zero are a tie
    return int((projections >= (1.0 - 1e-9) * projections.max()).to(torch.int8).argmax())


@declare(
    reference="Karimireddy, He, Jaggi 2022, 'Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing',"
    " the mimic attack",
    knowledge="omniscient",
    examples=({}, {"row": 0}),
)
def mimic(
    honest: Tensor, *, b: int, row: Literal["max_variance"] | Annotated[int, pydantic.Field(ge=0)] = "max_variance"
) -> Tensor:
    """All attackers send what one honest client sends; on unequal data that alone misleads a robust rule.

        sent = honest_i,    i = argmax_i |⟨v, honest_i⟩|,    v = argmax_‖v‖=1 Σ_i ⟨v, honest_i - μ⟩²

    honest: `[h, d]`.
    row: "max_variance", or the place i of the client to copy among the honest clients of the exchange, in the order of
        their ids from 0 on.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest, and for a place that is not taken.

    Differences from the paper: it learns v over the first rounds (by Oja's rule), then copies one client for good; an
    attack has no memory here, so v and i follow from this exchange alone, and the client copied may change. With
    `row` and full participation it is the same one throughout.
    """
    mean = honest_mean(honest, b, "mimic")
    if row == "max_variance":
        row = most_telling(honest, mean)
    if row >= honest.shape[0]:
        raise FedoptError(
            f"mimic is to copy honest client {row}, counted from 0, of an exchange with {honest.shape[0]} of them; set"
            f" attack.row to {honest.shape[0] - 1} at most"
        )
    return honest[row].expand(b, -1).clone()
