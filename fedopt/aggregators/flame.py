"""FLAME: updates whose direction is the majority's, clipped to the median length, with noise."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators._cosines import cosines
from fedopt.aggregators._rows import lengths, shrinking
from fedopt.aggregators._trust import combined
from fedopt.aggregators.median import median
from fedopt.registry import declare
from fedopt.types import Info

_ROUNDING = 1e-12  # cosine distances below it are those of parallel rows


@declare(
    reference="Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni,"
    " Koushanfar, Sadeghi, Schneider 2022, 'FLAME: Taming Backdoors in Federated Learning', algorithm 1",
    scope="vector",
    examples=({}, {"noise": 0.1}),
    exceptions={"translation": "updates are compared by their directions and clipped to a length"},
)
@dataclass(frozen=True)
class flame:
    """The mean of the admitted updates, clipped to the median length of all, plus noise in proportion to it.

        S = median ‖xᵢ‖ over all rows
        A = the cluster of more than half of the rows by 1 - cos(xᵢ, xⱼ), what stands apart from it left out
        delta = 1/|A| · Σ over i in A of min(1, S/‖xᵢ‖) xᵢ + N(0, (λS)² I)

    The cluster is that of HDBSCAN with at least ⌊n/2⌋ + 1 members and one sample for a core, so there is one at the
    most. Where what is left has length 0, nothing moves.

    noise: λ, the standard deviation of the noise in median lengths; the paper takes 0.001 for images. Off by default.

    Differences from the paper: the cosines are those of the updates, while it compares whole models, and the median of
    an even number is the mean of the two in the middle. Client weights play no part.
    """

    noise: Annotated[float, pydantic.Field(ge=0.0)] = 0.0

    def init(self, n: int) -> tuple[()]:
        return ()

    def apply(self, updates: Tensor, state: tuple[()], *, key: Tensor) -> tuple[Tensor, tuple[()], Info]:
        """`updates [n, d]` -> delta `[d]`; info has the weights as `trust [n]`."""
        n, d = updates.shape
        norms = lengths(updates)
        bound = median(norms[:, None])[0]
        admitted = _majority(updates) & torch.isfinite(norms)
        trust = torch.where(admitted, shrinking(norms, bound), 0.0) / max(int(admitted.sum()), 1)
        if not bool((trust > 0).any()):
            reason = f"nothing is left of {n} updates with a median length of {float(bound)}"
            return updates.new_zeros(d), state, {"trust": trust, "kept_model": reason}
        delta = combined(trust, updates)
        if self.noise > 0:
            spread = self.noise * float(bound)
            delta = delta + spread * keys.normal(keys.fold(key, "flame"), d, dtype=delta.dtype)
        return delta, state, {"trust": trust}


def _majority(updates: Tensor) -> Tensor:
    """Which rows belong to the cluster of more than half of them, `[n]`."""
    n = updates.shape[0]
    if n == 1:
        return torch.ones(1, dtype=torch.bool, device=updates.device)
    similar = cosines(updates, updates)
    gaps = 1.0 - 0.5 * (similar + similar.T)
    gaps = torch.where(gaps < _ROUNDING, 0.0, gaps).fill_diagonal_(0.0)
    cluster = importlib.import_module("sklearn.cluster").HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    return torch.from_numpy(cluster.fit(gaps.cpu().numpy()).labels_ >= 0).to(updates.device)
