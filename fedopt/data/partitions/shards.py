"""Every client a few pieces of the samples sorted by class."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import by_owner, class_labels, wanted
from fedopt.keys import fold, permutation
from fedopt.registry import ConfigError, declare


@declare(reference="McMahan et al. 2017, section 3 (pathological non-IID)")
def shards(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    shards_per_client: Annotated[int, pydantic.Field(ge=1)] = 2,
) -> Parts:
    """Sort the samples by class, cut them into N * shards_per_client equal shards and deal these out at random.

    shards_per_client: 2 in the paper.

    Raises ConfigError without `data.clients`, for labels that are no classes and for more shards than samples.

    *Differences from the paper:* the samples of a class are shuffled first; sizes of shards differ by one where the
    number of samples is no multiple of the number of shards.
    """
    clients, labels = wanted(clients, "shards"), class_labels(labels, "shards")
    samples, pieces = len(labels), clients * shards_per_client
    if pieces > samples:
        raise ConfigError(
            "data.partition.shards_per_client",
            f"{clients} clients with {shards_per_client} shards each need {pieces} samples, there are {samples}: lower"
            " it or data.clients",
        )
    shuffled = permutation(fold(key, "order"), samples)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    holder = permutation(fold(key, "shards"), pieces) // shards_per_client
    owner = torch.empty(samples, dtype=torch.int64)
    owner[by_class] = holder[torch.arange(samples) * pieces // samples]
    return by_owner(owner, clients)
