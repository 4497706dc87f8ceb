"""Norm clipping: the mean of the rows, none of which counts as longer than a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from torch import Tensor

from fedopt.aggregators._rows import combined, lengths, shares, shrinking
from fedopt.registry import declare
from fedopt.types import Info, State


@declare(
    reference="Sun, Kairouz, Suresh, McMahan 2019, 'Can You Really Backdoor Federated Learning?', arXiv 1911.07963,"
    " norm thresholding; the median as the bound: Nguyen et al. 2022, 'FLAME: Taming Backdoors in Federated Learning'",
    scope="vector",
    examples=({}, {"bound": 1.0}),
    exceptions={"translation": "the length of an update is measured from the model as it stands, the origin"},
)
@dataclass(frozen=True)
class norm_clipping:
    """The weighted mean of the rows, those longer than a bound scaled down to it.

        delta = Σᵢ wᵢ min(1, B / ‖xᵢ‖) xᵢ / Σᵢ wᵢ

    bound: B, or "median" for the median of the ‖xᵢ‖ of each round (the mean of the two in the middle of an even
        number).

    Returns `[d]` from `updates [n, d]`; info has the factor of each row as `trust [n]`, the `bound`, and how many rows
    were `clipped`. Raises FedoptError for weights without a positive finite sum.

    Differences from the paper: the first adds Gaussian noise to hide a backdoor, the second clips after a clustering;
    both are left to other parts.
    """

    bound: Annotated[float, pydantic.Field(gt=0.0)] | Literal["median"] = "median"

    def init(self, n: int) -> State:
        return ()

    def apply(self, updates: Tensor, state: State, *, weights: Tensor) -> tuple[Tensor, State, Info]:
        """`updates [n, d]`, weights `[n]` -> delta `[d]`."""
        share, norms, n = shares(weights, "norm_clipping"), lengths(updates), updates.shape[0]
        ranked = norms.sort().values
        bound = 0.5 * float(ranked[(n - 1) // 2] + ranked[n // 2]) if self.bound == "median" else self.bound
        factors = shrinking(norms, bound)
        info = {"trust": share * factors, "bound": bound, "clipped": int((factors < 1.0).sum())}
        return combined(share * factors, updates), state, info
