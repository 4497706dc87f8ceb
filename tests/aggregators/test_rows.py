"""Sums over rows that rules share."""

from __future__ import annotations

import torch

from fedopt import keys
from fedopt.aggregators._rows import combined


def test_long_rows_are_the_sum_of_their_parts() -> None:
    key = keys.root(4)
    for d in (1 << 15, (1 << 15) + 5, 100_003):
        for dtype in (torch.float32, torch.float64):
            updates = keys.normal(keys.fold(key, d), 7, d, dtype=dtype)
            weights = keys.uniform(keys.fold(key, "weights"), 7, dtype=torch.float64)
            wanted = (weights[:, None] * updates.to(torch.float64)).sum(dim=0)
            torch.testing.assert_close(combined(weights, updates), wanted.to(dtype), rtol=1e-5, atol=1e-5)
            wide = torch.cat([updates, updates], dim=1)[:, :d]  # rows that do not follow one another in memory
            assert torch.equal(combined(weights, wide), combined(weights, updates))
