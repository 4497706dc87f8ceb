"""A Little Is Enough as in the released code of BANT: about random gradients, with another quantile."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

from torch import Tensor

from fedopt.attacks.alie import Deviations
from fedopt.attacks.min_max import deviation
from fedopt.attacks.random_gradients import restarts
from fedopt.registry import declare
from fedopt.types import FedoptError


def z_released(n: int, b: int) -> float:
    """Φ⁻¹((n - s) / n) with s = ⌊n/2 + 1⌋ - b, and 0 from half of the clients on, where s <= 0."""
    share = (n - (math.floor(n / 2 + 1) - b)) / n
    return NormalDist().inv_cdf(share) if share < 1.0 else 0.0


@declare(
    reference="Molodtsov and others 2025, 'Bant: Byzantine Antidote via Trial Function and Trust Scores', released"
    " code; after Baruch, Baruch, Goldberg 2019, 'A Little Is Enough'",
    knowledge="colluders",
    examples=({}, {"z": 1.5, "direction": -1}),
    exceptions={"knowledge": 'with base = "random_gradients" the honest rows of the attackers play no part'},
)
def alie_released(
    own: Tensor,
    *,
    b: int,
    n: int,
    key: Tensor | None = None,
    model: Tensor | None = None,
    fresh: Callable[[Tensor], Tensor] | None = None,
    base: Literal["random_gradients", "own"] = "random_gradients",
    z: Deviations = None,
    direction: Literal[1, -1] = 1,
) -> Tensor:
    """All attackers send the mean of their base updates, shifted by some standard deviations of these.

        sentⱼ = μⱼ + direction · z · σⱼ,    s = ⌊n/2 + 1⌋ - b,    z = Φ⁻¹((n - s) / n), or 0 where s <= 0

    μⱼ and σⱼ are mean and standard deviation (divisor b - 1) of coordinate j over the b base updates; a single
    attacker has no deviation and sends its base update.

    own: the attackers' honest updates `[b, d]`.
    base: "random_gradients" as `random_gradients` sends them, or "own", what the attackers computed; these are wrong
        where an attack on data has changed the labels that they train on.
    z: a number of standard deviations of your own in place of the formula.
    direction: 1 as published, -1 for the other side of the mean.
    key, model, fresh: for `base = "random_gradients"`, as in `random_gradients`.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when a base of random gradients lacks the key, the model or a way to draw fresh parameters.

    Differences from Baruch et al.: the statistics are over updates that are not honest, and z divides by n where they
    divide by n - b (`alie`, `alie_colluders`), so for n = 10, b = 4 it is 0.8416 in place of 0.4307.
    """
    rows = own
    if base == "random_gradients":
        if key is None or model is None or fresh is None:
            raise FedoptError(
                "alie_released draws fresh models around the server's model, which are not both on offer here; set"
                ' attack.base to "own"'
            )
        rows = restarts(own, key, model, fresh)
    mean = rows.mean(dim=0)
    shift = direction * (z_released(n, b) if z is None else z)
    return (mean + shift * deviation(rows, mean, correction=1)).expand(b, -1).clone()
