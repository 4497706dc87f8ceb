"""Neurotoxin: a backdoor in the coordinates that the other clients do not touch, where it lasts."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.attacks.model_replacement import stretched
from fedopt.registry import declare


@declare(
    reference="Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal 2022, 'Neurotoxin: Durable Backdoors in"
    " Federated Learning', algorithm 1",
    knowledge="omniscient",
    examples=({}, {"top": 0.5, "bound": 1.0}),
)
def neurotoxin(
    honest: Tensor,
    *,
    own: Tensor,
    b: int,
    top: Annotated[float, pydantic.Field(ge=0.0, lt=1.0)] = 0.05,
    bound: Positive | None = None,
) -> Tensor:
    """What each attacker would honestly send, without the coordinates that the honest clients move most.

        sent_i = min(1, bound / ‖kept_i‖) · kept_i,    kept_iⱼ = 0 for the ⌊top · d⌋ largest |μⱼ|, else own_iⱼ
        μ = (1/h) Σ honest_i

    honest: `[h, d]`.
    own: the attackers' honest updates `[b, d]`, usually on a backdoor's data.
    top: share of the coordinates left to the others.
    bound: largest length of a row that is sent, against rules that clip norms.
    Returns `[b, d]`.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: its attackers see the last movement of the server's model in place of the honest updates
    of this exchange; it projects the gradient of every local step, here the update is projected once, at the end; it
    tunes the share for each task. Of coordinates that move equally the first ones are left out.
    """
    movement = honest_mean(honest, b, "neurotoxin")
    spared = math.floor(top * movement.numel() + 1e-9)
    most = movement.abs().argsort(descending=True, stable=True)[:spared]
    own = own.index_fill(1, most, 0.0)
    return stretched(own, 1.0, bound)
