"""Columns in ascending order, some at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 20  # entries sorted at a time


def over_sorted(updates: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """`of(rows [n, k] in ascending order) -> [k]`, over blocks of the columns of `updates [n, d]`; result `[d]`."""
    columns = max(1, BLOCK // updates.shape[0])
    return torch.cat([of(_ascending(block)) for block in updates.split(columns, dim=1)])


def _ascending(block: Tensor) -> Tensor:
    if block.device.type == "cpu" and block.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(block.numpy(), axis=0))  # vectorised, 6 to 15 times faster than torch.sort
    return torch.sort(block, dim=0).values
