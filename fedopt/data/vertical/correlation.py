"""Parties whose columns say much or little of each other's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data.vertical._columns import dealt, equal_sizes, table_columns
from fedopt.keys import fold, permutation, uniform
from fedopt.registry import declare


class Found(NamedTuple):
    """A partition of the search: `members [N, w]`, the columns of each party, filled up; and its `icor`."""

    members: np.ndarray
    icor: float


@declare(reference="Wu, Hou & He 2024, VertiBench, ICLR, arXiv 2307.02040, correlation-based feature split")
def correlation(
    x: Tensor,
    y: Tensor,
    parties: int,
    key: Tensor,
    *,
    beta: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5,
    steps: Annotated[int, pydantic.Field(ge=1)] = 1000,
) -> list[Tensor]:
    """Equal parts of a table's columns with Icor as near to (1 - β) Icor_min + β Icor_max as a search finds.

    R is the matrix of Spearman's rank correlations of the columns (0 for a constant one), R_ij its block with the
    columns of party i and of party j, and σ the d singular values of a block, d the smaller of its sides:

        Pcor(i, j) = sqrt( sum_k (σ_k - mean σ)² / ((d - 1) d) ),  0 for d = 1
        Icor = mean over i of ( mean over j != i of Pcor(i, j)  -  Pcor(i, i) )

    beta: 0, correlated columns are with one party; 1, they are spread over the parties.
    steps: swaps of two columns of two parties that each of three searches (the least Icor, the largest, the wanted one)
        tries, keeping those that help. A swap costs the singular values of 2 N blocks.

    Raises ConfigError for anything but a table `[S, d]`, and for more parties than columns.

    *Differences from the paper:* a search by swaps from a random partition in place of a genetic algorithm (BRKGA); the
    third starts from the nearest partition of the first two, so that β = 0 and β = 1 are what these found. Singular
    values are exact for every size of a block; the authors' program approximates those of large ones.
    """
    columns = table_columns(x, parties, "correlation")
    sizes = equal_sizes(columns, parties)
    start = dealt(permutation(fold(key, "start"), columns), sizes)
    if parties == 1:
        return start
    # parties are filled up to one size with a column that is correlated with nothing
    correlations = np.pad(_spearman(x), (0, 1))
    first = np.full((parties, int(sizes.max())), columns)
    for i, part in enumerate(start):
        first[i, : len(part)] = part.numpy()

    def search(found: np.ndarray, cost: Callable[[float], float], name: str) -> Found:
        draws = uniform(fold(key, name), steps, 4, dtype=torch.float64).numpy()
        return _search(correlations, sizes.numpy(), found, cost, draws)

    low = search(first, lambda icor: icor, "least")
    high = search(first, lambda icor: -icor, "largest")
    target = (1 - beta) * low.icor + beta * high.icor
    nearest = min(low, high, key=lambda found: abs(found.icor - target))
    best = search(nearest.members, lambda icor: abs(icor - target), "wanted")
    return [torch.from_numpy(np.sort(row[:size])) for row, size in zip(best.members, sizes.tolist(), strict=True)]


def _pcor(correlations: np.ndarray, sizes: np.ndarray, parties: list[int], members: np.ndarray) -> np.ndarray:
    """Pcor of these parties with all, `[len(parties), N]`."""
    blocks = correlations[members[parties][:, None, :, None], members[None, :, None, :]]
    values = np.linalg.svd(blocks, compute_uv=False)
    d = np.minimum(sizes[parties][:, None], sizes[None, :])
    mean = values.sum(-1) / d
    # the filling adds values of zero, at the end
    off = np.where(np.arange(values.shape[-1]) < d[..., None], values - mean[..., None], 0.0)
    pcor: np.ndarray = np.sqrt((off**2).sum(-1) / (np.maximum(d - 1, 1) * d))
    return pcor


def _icor(pcor: np.ndarray) -> float:
    parties = len(pcor)
    return float((pcor.sum() - pcor.trace()) / (parties * (parties - 1)) - pcor.trace() / parties)


def _search(
    correlations: np.ndarray,
    sizes: np.ndarray,
    members: np.ndarray,
    cost: Callable[[float], float],
    draws: np.ndarray,
) -> Found:
    """Swaps that lower the cost; each row of `draws [steps, 4]` says which two parties and which of their columns."""
    parties = len(members)
    pcor = _pcor(correlations, sizes, list(range(parties)), members)
    best = _icor(pcor)
    for one, other, a, b in draws:
        p = int(one * parties)
        q = (p + 1 + int(other * (parties - 1))) % parties
        i, j = int(a * sizes[p]), int(b * sizes[q])
        swapped, changed = members.copy(), pcor.copy()
        swapped[p, i], swapped[q, j] = members[q, j], members[p, i]
        rows = _pcor(correlations, sizes, [p, q], swapped)
        changed[[p, q]], changed[:, [p, q]] = rows, rows.T
        icor = _icor(changed)
        if cost(icor) < cost(best):
            members, pcor, best = swapped, changed, icor
    return Found(members, best)


def _spearman(x: Tensor) -> np.ndarray:
    ranks: np.ndarray = importlib.import_module("scipy.stats").rankdata(x.numpy(), axis=0)
    ranks -= ranks.mean(0)
    norms = np.sqrt((ranks**2).sum(0))
    ranks /= np.where(norms > 0, norms, 1.0)
    correlations: np.ndarray = ranks.T @ ranks
    return correlations
