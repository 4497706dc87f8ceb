"""Inner product manipulation: the honest mean, turned round and made small."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.registry import declare
from fedopt.types import FedoptError

Positive = Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)]


def honest_mean(honest: Tensor, b: int, name: str) -> Tensor:
    """Mean of the honest rows `[d]`. Raises FedoptError where there is none."""
    if honest.shape[0] == 0:
        raise FedoptError(
            f"{name} sees no honest update beside those of its {b} attackers; lower the share of attackers or raise"
            " participation.count"
        )
    return honest.mean(dim=0)


@declare(
    reference="Xie, Koyejo, Gupta 2020, 'Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product"
    " Manipulation'",
    knowledge="omniscient",
    examples=({}, {"kappa": 100.0}),
)
def ipm(honest: Tensor, *, b: int, kappa: Positive = 0.5) -> Tensor:
    """All attackers send the honest mean with the other sign.

        sent = -κ μ,    μ = (1/h) Σ honest_i

    A small κ passes for an honest update in length; with more than h / κ attackers the plain mean moves backwards.

    honest: `[h, d]`.
    kappa: κ > 0.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: none; it writes ε for κ.
    """
    return (-kappa * honest_mean(honest, b, "ipm")).expand(b, -1).clone()
