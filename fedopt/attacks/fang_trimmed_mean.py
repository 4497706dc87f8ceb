"""Fang's attack on the trimmed mean: just beyond the honest values, on the side that turns the model round."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks.ipm import honest_mean
from fedopt.registry import declare


@declare(
    reference="Fang, Cao, Jia, Gong 2020, 'Local Model Poisoning Attacks to Byzantine-Robust Federated Learning',"
    " directed deviation with full knowledge",
    knowledge="omniscient",
    examples=({}, {"reach": 10.0}),
)
def fang_trimmed_mean(
    honest: Tensor,
    *,
    b: int,
    key: Tensor,
    reach: Annotated[float, pydantic.Field(gt=1.0, allow_inf_nan=False)] = 2.0,
) -> Tensor:
    """In every coordinate, random values between the honest extreme against the mean's sign and `reach` times that.

        sⱼ > 0:     sentᵢⱼ ~ U[low / reach, low]   if low > 0,   U[reach · low, low]   otherwise
        otherwise:  sentᵢⱼ ~ U[high, reach · high] if high > 0,  U[high, high / reach] otherwise

        low = min_i honest_iⱼ,    high = max_i honest_iⱼ,    s = sign((1/h) Σ honest_i)

    A trimmed mean or a median that cuts off b values then cuts off b honest ones at the other end.

    honest: `[h, d]`.
    reach: how far beyond the extreme, > 1; the paper's b, which is 2.
    Returns `[b, d]`.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: it writes the values of local models, here and in its released code they are updates;
    s is the sign of the honest mean, there that of what the rule would give without attackers.
    """
    increasing = honest_mean(honest, b, "fang_trimmed_mean") > 0
    extreme = torch.where(increasing, honest.amin(dim=0), honest.amax(dim=0))
    inward = (extreme > 0) == increasing
    far = torch.where(inward, extreme / reach, extreme * reach)
    dtype = torch.float64 if honest.dtype == torch.float64 else torch.float32
    drawn = keys.uniform(key, b, honest.shape[1], dtype=dtype).to(honest)
    return extreme + drawn * (far - extreme)
