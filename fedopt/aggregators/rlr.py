"""The robust learning rate: away from where too few clients agree to go."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators.mean import mean
from fedopt.aggregators.sign_vote import votes
from fedopt.registry import declare
from fedopt.types import FedoptError


@declare(
    reference="Ozdayi, Kantarcioglu, Gel 2021, 'Defending against Backdoors in Federated Learning with Robust Learning"
    " Rate', algorithm 1",
    scope="coordinate",
    requires="n >= theta",
    admits=lambda n, theta: n >= theta,
    examples=({"theta": 10},),
    exceptions={"translation": "votes are the signs of the updates"},
)
def rlr(updates: Tensor, *, weights: Tensor, theta: Annotated[int, pydantic.Field(ge=0)]) -> Tensor:
    """The weighted mean, with the opposite sign in coordinates where the updates do not agree.

        deltaⱼ = ηⱼ Σᵢ wᵢ xᵢⱼ / Σᵢ wᵢ,    ηⱼ = 1 where |Σᵢ sign(xᵢⱼ)| >= θ, else -1

    What a few attackers put in, nobody else votes for, and the step goes away from it. θ = 0 is the weighted mean.

    updates: `[n, d]`.
    weights: `[n]`, not negative.
    theta: θ, by how many votes one side has to be ahead.
    Returns `[d]`.
    Raises FedoptError unless n >= theta, which no vote would reach, and if the weights have no positive finite sum.

    Differences from the paper: its server learning rate is that of the server optimizer.
    """
    n = updates.shape[0]
    if n < theta:
        raise FedoptError(f"rlr with theta = {theta} needs n >= theta = {theta} rows, {n} were given")
    average = mean(updates, weights=weights)
    return torch.where(votes(updates).abs() >= theta, average, -average)
