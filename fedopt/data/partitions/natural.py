"""Every natural owner a client."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import by_owner
from fedopt.keys import permutation
from fedopt.registry import ConfigError, declare


@declare(reference="Caldas et al. 2018, LEAF", by_groups=True)
def natural(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    min_samples: Annotated[int, pydantic.Field(ge=1)] = 1,
) -> Parts:
    """Client i is the i-th of the natural owners (patients, speakers, devices) that have enough samples.

    min_samples: owners with fewer are left out, and their samples with them.

    With `data.clients`, that many of the owners are chosen at random, and the others are left out.

    Raises ConfigError if the data has no natural owners or fewer than `data.clients` of them.
    """
    if groups is None:
        raise ConfigError(
            "data.partition.name",
            "'natural' needs a source with natural owners, this one has none; use another partition",
        )
    sizes = torch.bincount(groups)
    kept = torch.nonzero(sizes >= min_samples).flatten()
    if not len(kept) or (clients is not None and not 1 <= clients <= len(kept)):
        wish = "at least one" if clients is None else f"data.clients = {clients}"
        raise ConfigError(
            "data.clients" if len(kept) else "data.partition.min_samples",
            f"{wish} was needed, {len(kept)} of the {int((sizes > 0).sum())} natural owners have {min_samples} samples"
            f" (the largest has {int(sizes.max())}); change data.clients or data.partition.min_samples",
        )
    if clients is not None:
        kept = kept[permutation(key, len(kept))[:clients]].sort().values
    number = torch.full((len(sizes),), -1, dtype=torch.int64)
    number[kept] = torch.arange(len(kept))
    return by_owner(number[groups], len(kept))
