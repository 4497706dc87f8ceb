"""Parties with many columns and parties with few."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data.partitions._owners import apportion
from fedopt.data.vertical._columns import column_count, dealt
from fedopt.keys import fold, permutation, to_seed
from fedopt.registry import ConfigError, declare


@declare(
    reference="Li et al. 2022, NIID-Bench, section 4.3 (quantity skew), of columns in place of samples",
    examples=({"alpha": 1.0},),
)
def by_size(
    x: Tensor,
    y: Tensor,
    parties: int,
    key: Tensor,
    *,
    sizes: tuple[Annotated[int, pydantic.Field(ge=1)], ...] | None = None,
    alpha: Annotated[float, pydantic.Field(gt=0)] | None = None,
    axis: int = -1,
    shuffle: bool = False,
) -> list[Tensor]:
    """Neighbouring columns in parts of given sizes, or of size_i = 1 + share_i * (columns - parties), share ~ Dir(α 1).

    sizes: columns of each party; together all columns.
    alpha: concentration of the drawn sizes; small is far from equal. One of the two has to be given.
    axis: what is cut, of `x [S, ...]`; see `even`.
    shuffle: put the columns in a random order first.

    Raises ConfigError unless one of `sizes` and `alpha` is given, for sizes that are not one for each party or do not
    add up to the columns, for an axis that `x` does not have, and for more parties than columns.
    """
    columns = column_count(x, axis, parties)
    if (sizes is None) == (alpha is None):
        raise ConfigError("data.vertical.sizes", "one of sizes (numbers of columns) and alpha (drawn) was needed")
    if sizes is not None and (len(sizes) != parties or sum(sizes) != columns):
        raise ConfigError(
            "data.vertical.sizes",
            f"{parties} numbers that add up to {columns} columns were needed, {len(sizes)} numbers that add up to"
            f" {sum(sizes)} were given",
        )
    if sizes is None:
        shares = np.random.default_rng(to_seed(fold(key, "sizes"))).dirichlet(np.full(parties, alpha))
        sizes = (1 + apportion(shares, columns - parties)).tolist()
    order = permutation(fold(key, "order"), columns) if shuffle else torch.arange(columns)
    return dealt(order, torch.tensor(sizes))
