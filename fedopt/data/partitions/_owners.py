"""From the owner of each sample to each owner's samples, and the checks that partitions share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.registry import ConfigError


def by_owner(owner: Tensor, clients: int) -> Parts:
    """`owner [S]`, the client of each sample or -1 for nobody -> each client's samples, increasing."""
    order = torch.argsort(owner, stable=True)
    sizes = torch.bincount(owner + 1, minlength=clients + 1)
    return Parts(order[int(sizes[0]) :], sizes[1:])


def wanted(clients: int | None, partition: str) -> int:
    """The number of clients, which has to be given."""
    if clients is None:
        raise ConfigError("data.clients", f"missing; the partition '{partition}' needs the number of clients")
    if clients < 1:
        raise ConfigError("data.clients", f"at least 1 was needed, {clients} was given")
    return clients


def class_labels(labels: Tensor, partition: str) -> Tensor:
    """The labels, if each sample has one class."""
    if labels.dim() != 1 or labels.is_floating_point():
        raise ConfigError(
            "data.partition.name",
            f"'{partition}' spreads classes and needs one class per sample, the labels are {labels.dtype} of shape"
            f" {list(labels.shape)}; use iid, quantity or natural",
        )
    return labels


def check_sizes(sizes: Tensor, min_samples: int, mend: str) -> None:
    """Raise ConfigError, naming clients, unless everyone has `min_samples` and at least one sample."""
    least = max(min_samples, 1)
    short = torch.nonzero(sizes < least).flatten()
    if len(short):
        listing = ", ".join(f"client {i} has {int(sizes[i])}" for i in short[:5].tolist())
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        needed = f"at least {least} per client was needed, but {listing}{more}; {mend}"
        if min_samples > 1:
            raise ConfigError("data.partition.min_samples", f"{needed}, or lower data.partition.min_samples")
        raise ConfigError("data.clients", needed)


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to `total`, in proportion to `shares`, by largest remainders (ties: the first)."""
    exact = shares / shares.sum() * total
    counts: np.ndarray = np.floor(exact).astype(np.int64)
    rest = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts
