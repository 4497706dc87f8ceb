"""Every client a uniform sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import by_owner, check_sizes, wanted
from fedopt.keys import permutation
from fedopt.registry import declare


@declare(reference="McMahan et al. 2017, section 3 (IID)")
def iid(labels: Tensor, groups: Tensor | None, clients: int | None, key: Tensor) -> Parts:
    """Shuffle all samples and deal them out in parts whose sizes differ by at most one.

    Raises ConfigError without `data.clients` and when there are more clients than samples.
    """
    clients = wanted(clients, "iid")
    samples = len(labels)
    owner = torch.empty(samples, dtype=torch.int64)
    owner[permutation(key, samples)] = torch.arange(samples) * clients // max(samples, 1)
    sizes = torch.bincount(owner, minlength=clients)
    check_sizes(sizes, 1, f"there are {samples} samples for {clients} clients: lower data.clients")
    return by_owner(owner, clients)
