"""Bucketing: rows are put into buckets at random, and each bucket sends its mean."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare


@declare(
    reference="Karimireddy, He, Jaggi 2022, 'Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing', arXiv"
    " 2006.09365, algorithm 1",
    rows="fewer",
    count=lambda n, s: -(-n // s),
    examples=({}, {"s": 3}),
)
def bucketing(updates: Tensor, *, key: Tensor, s: Annotated[int, pydantic.Field(ge=1)] = 2) -> Tensor:
    """The means of ⌈n/s⌉ random buckets of s rows; the last bucket may hold fewer.

        π a random order of the rows;  yₖ = mean of x_π(i), (k - 1)s < i <= min(ks, n)

    Buckets stand in the order of their first rows, so that s = 1 gives the rows as they are.

    updates: `[n, d]`.
    key: counter key; another one every round gives another order every round.
    s: rows in a bucket. Of f attackers, at most f of the ⌈n/s⌉ buckets are touched.
    Returns `[⌈n/s⌉, d]`.

    Differences from the paper: none; a last bucket that is not full is divided by the number of its rows.
    """
    n = updates.shape[0]
    rows, m = torch.arange(n, device=updates.device), -(-n // s)
    bucket = torch.empty_like(rows).scatter_(0, keys.permutation(key.to(updates.device), n), rows // s)
    first = rows.new_full((m,), n).scatter_reduce_(0, bucket, rows, "amin")
    bucket = first.argsort().argsort()[bucket]
    sizes = torch.bincount(bucket, minlength=m)
    mixing = updates.new_zeros(m, n)
    mixing[bucket, rows] = 1.0 / sizes[bucket].to(updates.dtype)
    return mixing @ updates
