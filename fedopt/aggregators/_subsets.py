"""All subsets of n rows without f of them, for rules that look at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedopt.types import FedoptError

_BATCH = 1 << 21  # entries of the tables of pairs of one batch


def admitted(n: int, f: int, most: int) -> bool:
    """Whether n >= 2f + 1. Raises ValueError, with their number, if there are more than `most` subsets."""
    if n < 2 * f + 1:
        return False
    count = math.comb(n, f)
    if count > most:
        raise ValueError(
            f"{n} clients without f = {f} of them are {count:,} subsets, all of which would be looked at; the most is"
            f" {most:,}, so lower f or the number of clients"
        )
    return True


def check(name: str, n: int, f: int, most: int) -> None:
    """Raises FedoptError unless `admitted`."""
    try:
        enough = admitted(n, f, most)
    except ValueError as error:
        raise FedoptError(f"{name}: {error}") from None
    if not enough:
        raise FedoptError(f"{name} with f = {f} needs n >= 2f + 1 = {2 * f + 1} rows, got {n}")


def subsets(n: int, k: int) -> Iterator[Tensor]:
    """The subsets of k of 0 ... n-1 in lexicographic order, some at a time: int64 `[b, k]`."""
    every = itertools.chain.from_iterable(itertools.combinations(range(n), k))
    entries = max(1, _BATCH // (k * k)) * k
    while (batch := np.fromiter(itertools.islice(every, entries), dtype=np.int64)).size:
        yield torch.from_numpy(batch.reshape(-1, k))
