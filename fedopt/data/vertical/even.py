"""Every party as many columns."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.data.vertical._columns import column_count, dealt, equal_sizes
from fedopt.keys import permutation
from fedopt.registry import declare


@declare(reference="Liu et al. 2024, Vertical federated learning: concepts, advances and challenges, section 2")
def even(x: Tensor, y: Tensor, parties: int, key: Tensor, *, axis: int = -1, shuffle: bool = False) -> list[Tensor]:
    """Neighbouring columns in parts whose sizes differ by at most one.

    axis: what is cut, of `x [S, ...]`: the last axis are the columns of a table and the columns of pixels of images
        `[S, C, H, W]`; 1 are the leads of an electrocardiogram `[S, leads, time]` or the channels of images.
    shuffle: put the columns in a random order first, so that a party holds columns from everywhere.

    Raises ConfigError for an axis that `x` does not have, and for more parties than columns.
    """
    columns = column_count(x, axis, parties)
    order = permutation(key, columns) if shuffle else torch.arange(columns)
    return dealt(order, equal_sizes(columns, parties))
