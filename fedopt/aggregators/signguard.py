"""SignGuard: updates of plausible length whose shares of positive and negative entries are the majority's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators._rows import lengths, shrinking
from fedopt.aggregators._trust import combined
from fedopt.aggregators.median import median
from fedopt.registry import declare
from fedopt.types import Info

_STILL = 1e-3  # of the bandwidth: a point that moves less has arrived
_STEPS = 300
_MARGIN = 1e-6  # shares are multiples of 1/k: a distance equal to the bandwidth must not depend on rounding


@declare(
    reference="Xu, Huang, Song, Lan 2022, 'Byzantine-robust Federated Learning through Collaborative Malicious Gradient"
    " Filtering', algorithm 2",
    scope="vector",
    examples=({}, {"share": 1.0, "lower": 0.4, "upper": 1.5}),
    exceptions={"translation": "lengths and signs are measured from 0"},
)
@dataclass(frozen=True)
class signguard:
    """The mean of the clipped updates that pass two filters, one on lengths and one on signs.

        M = median ‖xᵢ‖
        S₁ = {i: lower · M <= ‖xᵢ‖ <= upper · M}
        S₂ = the largest cluster of (share of xᵢⱼ > 0, of xᵢⱼ = 0, of xᵢⱼ < 0) over a random set of coordinates j
        delta = 1/|S₁ ∩ S₂| · Σ over i in S₁ ∩ S₂ of min(1, M/‖xᵢ‖) xᵢ

    The clusters are those of mean shift with a flat kernel, whose bandwidth is the mean distance from a point to the
    nearest `quantile` of all points, itself counted. Where no row passes both filters, nothing moves.

    lower, upper: the plausible lengths, in medians.
    share: of the coordinates, whose signs are counted; another set in each exchange.
    quantile: of the points, that sets the bandwidth.

    Differences from the paper: this is its plain form; the forms that add a cosine or a distance to the features are
    not offered. The median of an even number is the mean of the two in the middle. The bandwidth reaches at least to
    the nearest other point; where it is 0, equal shares make a cluster. Client weights play no part.
    """

    lower: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] = 0.1
    upper: Annotated[float, pydantic.Field(ge=1.0)] = 3.0
    share: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.1
    quantile: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.5

    def init(self, n: int) -> tuple[()]:
        return ()

    def apply(self, updates: Tensor, state: tuple[()], *, key: Tensor) -> tuple[Tensor, tuple[()], Info]:
        """`updates [n, d]` -> delta `[d]`; info has the weights as `trust [n]`."""
        norms = lengths(updates)
        middle = median(norms[:, None])[0]
        plausible = torch.isfinite(norms) & (norms >= self.lower * middle) & (norms <= self.upper * middle)
        kept = plausible & _largest_cluster(self._sign_shares(updates, key), self.quantile)
        trust = torch.where(kept, shrinking(norms, middle), 0.0) / max(int(kept.sum()), 1)
        if not bool(kept.any()):
            reason = f"none of {updates.shape[0]} updates passes both filters"
            return updates.new_zeros(updates.shape[1]), state, {"trust": trust, "kept_model": reason}
        return combined(trust, updates), state, {"trust": trust}

    def _sign_shares(self, updates: Tensor, key: Tensor) -> Tensor:
        """Shares of positive, zero and negative entries, `[n, 3]` float64."""
        d = updates.shape[1]
        # a share of 0.29 of 100 coordinates is 29 of them, although 0.29 * 100 is not a whole number in floating point
        count = max(1, math.ceil(self.share * d - 1e-9))
        part = updates if count == d else updates[:, keys.sample(keys.fold(key, "signguard"), d, count)]
        positive, negative = (part > 0).sum(dim=1), (part < 0).sum(dim=1)
        return torch.stack([positive, count - positive - negative, negative], dim=1).to(torch.float64) / count


def _largest_cluster(points: Tensor, quantile: float) -> Tensor:
    """Which of the points `[n, k]` belong to the largest cluster, `[n]`."""
    n = points.shape[0]
    reach = min(n, max(2, int(quantile * n)))
    bandwidth = float(_gaps(points, points).sort(dim=1).values[:, reach - 1].mean())
    if bandwidth == 0.0:
        labels = torch.unique(points, dim=0, return_inverse=True)[1]
    else:
        labels = _mean_shift(points, bandwidth * (1.0 + _MARGIN))
    # of equally large clusters the first: those of mean shift stand in the order of their density
    largest: Tensor = labels == torch.bincount(labels).argmax()
    return largest


def _mean_shift(points: Tensor, bandwidth: float) -> Tensor:
    """Labels `[n]` of the points `[n, k]`, by the nearest peak; peak 0 has the most points within the bandwidth.

    Every point climbs to the mean of what is within reach until it stands still. All of them climb at once, which for
    a hundred points takes milliseconds where scikit-learn's MeanShift takes a second; the labels are the same.
    """
    peaks, density = points, torch.zeros_like(points[:, 0])
    moving = torch.ones_like(density, dtype=torch.bool)
    for _ in range(_STEPS):
        inside = (_gaps(peaks, points) <= bandwidth).to(points.dtype)
        count = inside.sum(dim=1)
        means = inside @ points / count[:, None]
        still = (means - peaks).square().sum(dim=1).sqrt() <= _STILL * bandwidth
        peaks, density = torch.where(moving[:, None], means, peaks), torch.where(moving, count, density)
        moving = moving & ~still
        if not bool(moving.any()):
            break
    near, ranked = _gaps(peaks, peaks) <= bandwidth, list(zip(density.tolist(), peaks.tolist(), strict=True))
    taken, centres = torch.zeros_like(moving), []
    for i in sorted(range(len(ranked)), key=ranked.__getitem__, reverse=True):
        if not bool(taken[i]):
            centres.append(i)
            taken = taken | near[i]
    return _gaps(points, peaks[centres]).argmin(dim=1)


def _gaps(points: Tensor, others: Tensor) -> Tensor:
    """Distances `[n, m]`; there are few coordinates."""
    return (points[:, None] - others).square().sum(dim=2).sqrt()
