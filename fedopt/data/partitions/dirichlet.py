"""Every class spread over the clients in Dirichlet proportions."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import apportion, by_owner, check_sizes, class_labels, wanted
from fedopt.keys import fold, permutation, to_seed
from fedopt.registry import declare

TRIES = 100


@declare(
    reference="Yurochkin et al. 2019, Bayesian nonparametric federated learning, section 4; Li et al. 2022, NIID-Bench"
)
def dirichlet(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    alpha: Annotated[float, pydantic.Field(gt=0)] = 0.5,
    min_samples: Annotated[int, pydantic.Field(ge=1)] = 1,
) -> Parts:
    """For each class c draw p_c ~ Dir(α 1_N) and give client i the share p_c,i of the samples of c.

    alpha: concentration; small is far from iid.
    min_samples: if a client has fewer samples, all is drawn again, at most 100 times.

    Shares become whole numbers by largest remainders, so that every sample has an owner.

    Raises ConfigError without `data.clients`, for labels that are no classes, and when no draw of 100 gives everyone
    `min_samples`.

    *Differences from the paper:* none known; NIID-Bench draws again until everyone has 10 samples.
    """
    clients, labels = wanted(clients, "dirichlet"), class_labels(labels, "dirichlet")
    draws = np.random.default_rng(to_seed(fold(key, "proportions")))
    present, totals = (t.numpy() for t in torch.unique(labels, return_counts=True))
    for _ in range(TRIES):
        proportions = draws.dirichlet(np.full(clients, alpha), size=len(present))
        counts = np.stack([apportion(p, total) for p, total in zip(proportions, totals.tolist(), strict=True)])
        if counts.sum(0).min() >= min_samples:
            break
    check_sizes(
        torch.from_numpy(counts.sum(0)),
        min_samples,
        f"{TRIES} draws gave nothing better: use 'dirichlet_equal', which gives everyone as many samples, lower"
        f" data.clients, raise data.partition.alpha (now {alpha:g})",
    )
    # the samples of a class in random order, dealt out in the order of the clients
    shuffled = permutation(fold(key, "order"), len(labels))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    owner = torch.empty(len(labels), dtype=torch.int64)
    owner[by_class] = torch.from_numpy(np.repeat(np.tile(np.arange(clients), len(present)), counts.ravel()))
    return by_owner(owner, clients)
