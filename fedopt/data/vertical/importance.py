"""Parties that matter much and parties that matter little."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data.vertical._columns import table_columns
from fedopt.keys import fold, permutation, to_seed, uniform
from fedopt.registry import ConfigError, declare

Positive = Annotated[float, pydantic.Field(gt=0)]


@declare(reference="Wu, Hou & He 2024, VertiBench, ICLR, arXiv 2307.02040, importance-based feature split")
def importance(
    x: Tensor, y: Tensor, parties: int, key: Tensor, *, alpha: Positive | tuple[Positive, ...] = 1.0
) -> list[Tensor]:
    """Draw shares p ~ Dir(α_1, ..., α_N), then give every column of a table to one party, to i with probability p_i.

    Whatever the importance w_j of column j for the label is, the expected importance of party i is p_i sum_j w_j, so
    neither a model nor the labels are looked at.

    alpha: one concentration for all parties (small: one party has nearly everything), or one for each.

    Raises ConfigError for anything but a table `[S, d]`, for more parties than columns, and unless there is one `alpha`
    or one for each party.

    *Differences from the paper:* every party is given one column, drawn at random, before the others are spread, as in
    the authors' program, so that no party is empty; the expectation above holds for the columns that are spread.
    """
    columns = table_columns(x, parties, "importance")
    alphas = np.full(parties, alpha) if isinstance(alpha, int | float) else np.asarray(alpha)
    if len(alphas) != parties:
        raise ConfigError(
            "data.vertical.alpha",
            f"one number, or {parties} for as many parties, was needed; {len(alphas)} were given",
        )
    shares = np.random.default_rng(to_seed(fold(key, "shares"))).dirichlet(alphas)
    drawn = uniform(fold(key, "owner"), columns, dtype=torch.float64)
    # the last bound is 1 but for rounding, and everything above the others is the last party's
    owner = torch.searchsorted(torch.from_numpy(shares.cumsum()[:-1]), drawn, right=True)
    owner[permutation(fold(key, "first"), columns)[:parties]] = torch.arange(parties)
    return [torch.nonzero(owner == party).flatten() for party in range(parties)]
