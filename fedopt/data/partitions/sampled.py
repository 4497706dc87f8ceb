"""Every client a random sample of one pool: as many clients as wanted, whatever the size of the data set."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.data._values import Parts
from fedopt.data.partitions._owners import wanted
from fedopt.registry import ConfigError, declare

CELLS = 1 << 20
"""Samples drawn at a time, which bounds what drawing takes beside its result."""


@declare(
    reference="Woodworth et al. 2020, Is local SGD better than minibatch SGD?, section 2 (homogeneous: every"
    " machine draws from one distribution)",
    shared=True,
)
def sampled(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    samples: Annotated[int, pydantic.Field(ge=1)] = 20,
) -> Parts:
    """Client i holds `samples` different samples drawn at random, independently of all other clients.

    samples: how many each client holds.

    A sample may be held by many clients, so a data set of 10^4 samples makes a population of 10^6 clients. What a
    client holds depends on the key and his number alone: a larger population begins with the clients of a smaller one.

    Raises ConfigError without `data.clients` and for more samples per client than there are.

    *Differences from the paper:* the distribution is the data set itself, and a client draws without replacement.
    """
    clients = wanted(clients, "sampled")
    pool = len(labels)
    if samples > pool:
        raise ConfigError(
            "data.partition.samples", f"{samples} per client was given, there are {pool} samples; lower it"
        )
    index = torch.empty(clients, samples, dtype=torch.int64)
    for some in torch.arange(clients).split(max(CELLS // samples, 1)):
        own = keys.samples(keys.fold(key, "client", some), pool, samples)
        index[some[0] : some[-1] + 1] = own.sort(dim=1).values
    return Parts(index.flatten(), torch.full((clients,), samples))
