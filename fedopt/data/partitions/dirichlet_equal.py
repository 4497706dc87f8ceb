"""Every client a Dirichlet mixture of the classes, all of one size."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Parts
from fedopt.data.partitions._owners import by_owner, check_sizes, class_labels, wanted
from fedopt.keys import fold, permutation, to_seed
from fedopt.registry import declare


@declare(reference="Hsu, Qi, Brown 2019, Measuring the effects of non-identical data distribution, section 3")
def dirichlet_equal(
    labels: Tensor,
    groups: Tensor | None,
    clients: int | None,
    key: Tensor,
    *,
    alpha: Annotated[float, pydantic.Field(gt=0)] = 0.5,
) -> Parts:
    """For each client draw q ~ Dir(α p), p the shares of the classes, and fill an equal part with classes drawn from q.

    alpha: concentration; small is far from iid.

    Sizes differ by at most one. A class that is used up is left out of the mixtures of the clients that follow, in
    random order of clients; when nothing of a mixture is left, what remains is taken in its own proportions.

    Raises ConfigError without `data.clients`, for labels that are no classes and for more clients than samples.

    *Differences from the paper:* the paper does not say what happens when a class is used up.
    """
    clients, labels = wanted(clients, "dirichlet_equal"), class_labels(labels, "dirichlet_equal")
    samples = len(labels)
    sizes = torch.bincount(torch.arange(samples) * clients // max(samples, 1), minlength=clients)
    check_sizes(sizes, 1, f"there are {samples} samples for {clients} clients: lower data.clients")
    draws = np.random.default_rng(to_seed(fold(key, "mixtures")))
    left = torch.unique(labels, return_counts=True)[1].numpy().copy()
    mixtures = draws.dirichlet(alpha * left / samples, size=clients)
    counts = np.zeros((clients, len(left)), dtype=np.int64)
    for i in draws.permutation(clients):
        missing = int(sizes[i])
        while missing:
            q = np.where(left > 0, mixtures[i], 0.0)
            q = q if q.sum() > 0 else left.astype(np.float64)
            taken = np.minimum(draws.multinomial(missing, q / q.sum()), left)
            counts[i] += taken
            left -= taken
            missing -= int(taken.sum())
    # the samples of a class in random order, dealt out in the order of the clients
    shuffled = permutation(fold(key, "order"), samples)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    owner = torch.empty(samples, dtype=torch.int64)
    owner[by_class] = torch.from_numpy(np.repeat(np.tile(np.arange(clients), len(left)), counts.T.ravel()))
    return by_owner(owner, clients)
