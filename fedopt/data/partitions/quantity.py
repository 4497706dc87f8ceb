"""Clients of unequal size with the same mixture of classes."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import apportion, by_owner, check_sizes, wanted
from fedopt.keys import fold, permutation, to_seed
from fedopt.registry import ConfigError, declare


@declare(reference="Li et al. 2022, NIID-Bench, section 4.3 (quantity skew)")
def quantity(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    alpha: Annotated[float, pydantic.Field(gt=0)] | None = None,
    exponent: Annotated[float, pydantic.Field(ge=0)] | None = None,
    min_samples: Annotated[int, pydantic.Field(ge=1)] = 1,
) -> Parts:
    """Shuffle all samples and deal them out in unequal parts: size_i = min_samples + share_i * (S - N * min_samples).

    alpha: share ~ Dir(α 1_N); small is far from equal.
    exponent: share_i ∝ (i + 1)^-exponent, a power law; client 0 is the largest. One of the two has to be given.
    min_samples: what everyone has at least.

    Raises ConfigError unless one of `alpha` and `exponent` is given, and when the samples do not suffice.

    *Differences from the paper:* the paper has no least size, and no power law.
    """
    clients = wanted(clients, "quantity")
    if (alpha is None) == (exponent is None):
        raise ConfigError("data.partition.alpha", "one of alpha (Dirichlet sizes) and exponent (power law) was needed")
    samples = len(labels)
    rest = samples - clients * min_samples
    if rest < 0:
        equal = torch.bincount(torch.arange(samples) * clients // max(samples, 1), minlength=clients)
        check_sizes(equal, min_samples, f"there are {samples} samples for {clients} clients: lower data.clients")
    if alpha is not None:
        shares = np.random.default_rng(to_seed(fold(key, "sizes"))).dirichlet(np.full(clients, alpha))
    else:
        shares = np.arange(1, clients + 1, dtype=np.float64) ** -(exponent or 0.0)
    sizes = min_samples + apportion(shares, rest)
    owner = torch.empty(samples, dtype=torch.int64)
    owner[permutation(fold(key, "order"), samples)] = torch.from_numpy(np.repeat(np.arange(clients), sizes))
    return by_owner(owner, clients)
