"""A Little Is Enough: a shift that hides in the spread of the honest updates."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, Literal

import pydantic
from torch import Tensor

from fedopt.registry import declare
from fedopt.types import FedoptError

Deviations = Annotated[float | None, pydantic.Field(allow_inf_nan=False)]


def z_max(n: int, b: int) -> float:
    """The largest shift, in standard deviations, that leaves a majority with honest supporters.

        s = ⌊n/2 + 1⌋ - b honest supporters are needed for a majority
        z = Φ⁻¹((n - b - s) / (n - b))

    From half of the clients on, the attackers need no supporters (s <= 0) and the published z is infinite; here
    one honest client is still left beyond the shift, s >= 1. With fewer than two honest clients there is no spread to
    hide in and z = 0.
    """
    h = n - b
    supporters = max(math.floor(n / 2 + 1) - b, 1)
    return NormalDist().inv_cdf((h - supporters) / h) if h > supporters else 0.0


def shifted(rows: Tensor, b: int, z: float) -> Tensor:
    """Equal rows `[b, d]`: mean + z · std of each coordinate over the rows; std divides by the number of rows."""
    return (rows.mean(dim=0) + z * rows.std(dim=0, correction=0)).expand(b, -1).clone()


@declare(
    reference="Baruch, Baruch, Goldberg 2019, 'A Little Is Enough: Circumventing Defenses For Distributed Learning',"
    " algorithm 3",
    knowledge="omniscient",
    examples=({}, {"z": 1.5, "direction": -1}),
)
def alie(honest: Tensor, *, b: int, n: int, z: Deviations = None, direction: Literal[1, -1] = 1) -> Tensor:
    """All attackers send the honest mean, shifted by as many standard deviations as a majority still tolerates.

        sentⱼ = μⱼ + direction · z · σⱼ,    s = ⌊n/2 + 1⌋ - b,    z = Φ⁻¹((n - b - s) / (n - b))

    μⱼ and σⱼ are mean and standard deviation (divisor h) of coordinate j over the h honest updates of this exchange;
    n counts the clients of this exchange and b the attackers among them. z is negative where s > (n - b)/2.

    honest: `[h, d]`.
    z: a number of standard deviations of your own in place of the formula.
    direction: 1 as published, -1 for the other side of the mean.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: it takes the statistics over the attackers' own honest updates, which is
    `alie_colluders` here; it does not state the divisor of the deviation; it gives no finite z from half of the
    clients on (see `z_max`).
    """
    if honest.shape[0] == 0:
        raise FedoptError(
            f"alie sees no honest update among the {n} clients of this exchange; lower the fraction of attackers, raise"
            " participation.count, or use alie_colluders"
        )
    return shifted(honest, b, direction * (z_max(n, b) if z is None else z))
