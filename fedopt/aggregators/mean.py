"""The weighted mean, the rule of federated averaging."""

from __future__ import annotations

from torch import Tensor

from fedopt.aggregators._rows import combined, shares
from fedopt.registry import declare


@declare(
    reference="McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, 'Communication-Efficient Learning of Deep Networks"
    " from Decentralized Data', algorithm 1",
    scope="linear",
)
def mean(updates: Tensor, *, weights: Tensor) -> Tensor:
    """Weighted mean of the rows.

        delta = Σᵢ wᵢ xᵢ / Σᵢ wᵢ

    Linear: a row that is already the weighted mean of several, with their total weight, takes their place.

    updates: `[n, d]`.
    weights: `[n]`, not negative, usually the clients' numbers of samples.
    Returns `[d]`.
    Raises FedoptError if the weights do not have a positive finite sum.

    Differences from the paper: n_k / n there counts all samples of the round's clients, and so it does here as long as
    every client's weight is its number of samples; clients whose answers were rejected do not count.
    """
    # shares are formed first, and in float64: one row keeps its bits, and large weights do not overflow
    return combined(shares(weights, "mean"), updates)
