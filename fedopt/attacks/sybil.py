"""Sybils: many clients, one will."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.attacks.gaussian import noise
from fedopt.registry import declare


@declare(
    reference="Fung, Yoon, Beschastnikh 2020, 'The Limitations of Federated Learning in Sybil Settings'",
    knowledge="colluders",
    examples=({}, {"jitter": 0.01}),
)
def sybil(
    own: Tensor, *, key: Tensor, jitter: Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)] = 0.0
) -> Tensor:
    """All attackers send the mean of what they would honestly send.

        sent_i = (1/b) Σ own_k + jitter · ε_i,    ε_i ~ N(0, I)

    It is meant for attackers who train on other data than the rest, wrong labels or a backdoor: their common direction
    then weighs as much as they are many. Rules that compare clients (FoolsGold) look for just that, and `jitter` is
    what hides it.

    own: the attackers' honest updates `[b, d]`.
    jitter: standard deviation of noise that makes the rows differ.
    Returns `[b, d]`, equal rows where there is no jitter.

    Differences from the paper: sybils there share their data and each sends its own stochastic gradient; here they
    agree on one vector.
    """
    same = own.mean(dim=0).expand_as(own)
    return same + jitter * noise(own, key) if jitter else same.clone()
