"""Zero updates: attackers who do no work and return the model as they got it."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.registry import declare


@declare(
    reference="Fraboni, Vidal, Lorenzi 2021, 'Free-rider Attacks on Model Aggregation in Federated Learning', plain"
    " free-riding",
    knowledge="nothing",
)
def zero(rows: Tensor) -> Tensor:
    """Nothing but zeros.

        sent_i = 0

    rows: `[b, d]`, of which the shape alone is used.
    Returns `[b, d]`.

    Differences from the paper: free-riders there want to go unseen, here they slow down the others' mean.
    """
    return torch.zeros_like(rows)
