"""Random gradients: every attacker pulls towards a freshly initialised model of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare


def restarts(rows: Tensor, key: Tensor, model: Tensor, fresh: Callable[[Tensor], Tensor]) -> Tensor:
    """What leads from the model to a fresh one, another for each of `rows [b, d]`, in their dtype and place."""
    drawn = torch.stack([fresh(keys.fold(key, i)) for i in range(rows.shape[0])])
    return drawn.to(rows) - model.to(rows)


@declare(
    reference="Molodtsov and others 2025, 'Bant: Byzantine Antidote via Trial Function and Trust Scores', released"
    " code",
    knowledge="nothing",
)
def random_gradients(rows: Tensor, *, key: Tensor, model: Tensor, fresh: Callable[[Tensor], Tensor]) -> Tensor:
    """The step from the server's model to a model with random parameters.

        sent_i = w_i - x,    w_i a fresh initialisation, another one for each attacker and exchange

    rows: `[b, d]`, of which the shape alone is used.
    model: x, the parameters that the server sent down `[d]`.
    fresh: `key -> [d]`, parameters as the model's initialisation draws them.
    Returns `[b, d]`.

    Differences from the paper: buffers are honest there and untouched here, which is the same.
    """
    return restarts(rows, key, model, fresh)
