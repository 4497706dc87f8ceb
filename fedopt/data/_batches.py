"""Which of its own samples a client uses at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.keys import fold, permutations
from fedopt.types import FedoptError


def draw(
    sizes: Tensor, keys: Tensor, size: int | None, epochs: int, steps: int | None, shuffle: bool
) -> tuple[Tensor, Tensor]:
    """The walks of a cohort over its data: positions `[n, T, B]` int64 and mask `[n, T, B]` bool.

    Client i has K_i = ⌈size_i / size⌉ batches per epoch and takes epochs * K_i steps, or exactly `steps`; step s is
    batch s mod K_i of epoch ⌊s / K_i⌋, and every epoch has its own order. T is the largest number of steps, B the
    smaller of `size` and the largest client. A client's padding stands at the end, of a batch and of the walk; its
    position is 0 and its mask False. A client without samples takes no step.

    sizes: samples of each client `[n]`. keys: a counter key for each client `[n]`.
    size: samples per batch; None is all of a client's samples.
    epochs: walks over the data. steps: exact number of batches instead, cycling over the data, or None.
    shuffle: a new random order in each epoch; otherwise the order in which the samples are held.

    A client's walk depends on its own size and key alone, whoever else is in the cohort.

    Raises FedoptError for a batch size, a number of epochs or of steps below 1, and unless there is one key per client.
    """
    for name, number in (("batch size", size), ("number of epochs", epochs), ("number of steps", steps)):
        if number is not None and number < 1:
            raise FedoptError(
                f"a {name} of at least 1 was needed, {number} was given; change it in the strategy's options"
            )
    if sizes.shape != keys.shape or sizes.dim() != 1:
        raise FedoptError(
            f"one size and one key per client were needed, {list(sizes.shape)} and {list(keys.shape)} came"
        )
    n = len(sizes)
    width = int(sizes.max()) if n else 0
    batch = width if size is None else min(size, width)
    whole = max(batch, 1)  # without a sample in the whole cohort a batch is empty
    per_epoch = torch.div(sizes + whole - 1, whole, rounding_mode="floor")
    taken = per_epoch * epochs if steps is None else torch.where(sizes > 0, steps, 0)
    total = int(taken.max()) if n else 0
    positions = torch.zeros(n, total, batch, dtype=torch.int64, device=sizes.device)
    mask = torch.zeros(n, total, batch, dtype=torch.bool, device=sizes.device)
    column = torch.arange(width, device=sizes.device)
    epoch = 0
    while True:
        rows = torch.nonzero(taken > epoch * per_epoch).flatten()
        if not len(rows):
            return positions, mask
        order = column.expand(len(rows), width)
        if shuffle:
            order = permutations(fold(keys[rows], "epoch", epoch), sizes[rows], width)
        step = epoch * per_epoch[rows, None] + column // batch
        real = (column < sizes[rows, None]) & (step < taken[rows, None])
        at = ((rows[:, None] * total + step) * batch + column % batch)[real]
        positions.view(-1)[at] = order[real]
        mask.view(-1)[at] = True
        epoch += 1
