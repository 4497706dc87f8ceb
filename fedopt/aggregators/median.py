"""The coordinate-wise median."""

from __future__ import annotations

from torch import Tensor

from fedopt.aggregators._sorting import over_sorted
from fedopt.registry import declare


@declare(
    reference="Yin, Chen, Ramchandran, Bartlett 2018, 'Byzantine-Robust Distributed Learning: Towards Optimal"
    " Statistical Rates', definition 1",
    scope="coordinate",
)
def median(updates: Tensor) -> Tensor:
    """In every coordinate, the value in the middle, or the mean of the two in the middle.

        deltaⱼ = (x₍⌈n/2⌉₎ⱼ + x₍⌊n/2⌋+1₎ⱼ) / 2,    x₍1₎ⱼ <= … <= x₍n₎ⱼ sorted

    updates: `[n, d]`. Returns `[d]`. Stays within the honest values while fewer than half of the rows are attackers'.

    Differences from the paper: none; note that `torch.median` takes the lower of the two middle values.
    """
    n = updates.shape[0]
    low, high = (n - 1) // 2, n // 2
    return over_sorted(updates, lambda rows: 0.5 * rows[low] + 0.5 * rows[high])
