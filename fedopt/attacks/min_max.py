"""Min-Max: as far from the honest mean as the two honest updates furthest apart are from each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.registry import declare

Perturbation = Literal["std", "unit", "sign"]

_BLOCK = 1 << 18  # entries in float64 at a time


def _width(rows: int) -> int:
    return max(1, _BLOCK // rows)


def gram(rows: Tensor, mean: Tensor, *others: Tensor) -> Tensor:
    """Inner products of the rows around their mean, followed by other vectors `[d]`: `[h + k, h + k]` in float64.

    One pass through the rows in blocks of columns, so that no copy of them is made.
    """
    size = rows.shape[0] + len(others)
    products = rows.new_zeros(size, size, dtype=torch.float64)
    blocks = [part.to(rows).split(_width(size), dim=-1) for part in (rows, mean, *others)]
    for part, centre, *columns in zip(*blocks, strict=True):
        around = part.to(torch.float64) - centre.to(torch.float64)
        stacked = torch.cat([around, *(column.to(torch.float64)[None] for column in columns)])
        products.addmm_(stacked, stacked.T)
    return products


def sq_between(products: Tensor) -> Tensor:
    """Squared distances between vectors, `[h, h]`, from their inner products."""
    lengths = products.diagonal()
    return (lengths[:, None] + lengths - 2.0 * products).clamp(min=0.0)


def deviation(rows: Tensor, mean: Tensor, correction: int = 0) -> Tensor:
    """Standard deviation of each coordinate over the rows, with divisor h - correction; zeros where that is 0.

    The squares are summed in float64, so that rows of 1e30 in float32 do not overflow.
    """
    divisor = rows.shape[0] - correction
    if divisor == 0:
        return torch.zeros_like(mean)
    blocks = zip(*(part.split(_width(rows.shape[0]), dim=-1) for part in (rows, mean)), strict=True)
    squares = [(part.to(torch.float64) - centre.to(torch.float64)).square_().sum(dim=0) for part, centre in blocks]
    return (torch.cat(squares) / divisor).sqrt_().to(rows.dtype)


def direction(honest: Tensor, mean: Tensor, kind: Perturbation) -> Tensor:
    """The perturbation `[d]`, of any length."""
    if kind == "std":
        return -deviation(honest, mean)
    return -mean if kind == "unit" else -mean.sign()


def largest(holds: Callable[[float], bool], start: float, tolerance: float) -> float:
    """The published search for the largest γ >= 0 that `holds`, up to `tolerance`; it reaches as far as 2 · start.

    The step halves with every trial: γ grows by it after a success and shrinks by it after a failure.
    """
    gamma, step, best = start, start, 0.0
    while abs(best - gamma) > tolerance:
        step /= 2.0
        if holds(gamma):
            best = gamma
            gamma += step
        else:
            gamma -= step
    return best


def pushed(
    honest: Tensor,
    mean: Tensor,
    kind: Perturbation,
    allowed: Callable[[Tensor, Tensor], bool],
    start: float,
    tolerance: float,
) -> Tensor:
    """The honest mean, moved along the perturbation as far as is allowed, `[d]`.

    allowed: (squared distances `[h]` from what is sent to the honest rows, those between honest rows `[h, h]`).
    """
    h = honest.shape[0]
    along = direction(honest, mean, kind)
    products = gram(honest, mean, along)
    lengths, cross, sq_length = products.diagonal()[:h], products[:h, h], float(products[h, h])
    between = sq_between(products[:h, :h])
    if sq_length == 0.0:
        return mean
    # in units of the largest honest distance, so that the search does not depend on the scale of the updates
    unit = float(between.max().sqrt()) / math.sqrt(sq_length)

    def holds(gamma: float) -> bool:
        step = gamma * unit
        return allowed(lengths - 2.0 * step * cross + step**2 * sq_length, between)

    return mean + largest(holds, start, tolerance) * unit * along


@declare(
    reference="Shejwalkar, Houmansadr 2021, 'Manipulating the Byzantine: Optimizing Model Poisoning Attacks and"
    " Defenses for Federated Learning', Min-Max",
    knowledge="omniscient",
    examples=({}, {"perturbation": "unit"}, {"perturbation": "sign", "tolerance": 1e-3}),
)
def min_max(
    honest: Tensor,
    *,
    b: int,
    perturbation: Perturbation = "std",
    start: Positive = 10.0,
    tolerance: Positive = 1e-5,
) -> Tensor:
    """All attackers send the honest mean plus the longest perturbation that is no outlier.

        sent = μ + γ p,    γ the largest with  max_i ‖sent - honest_i‖ <= max_ij ‖honest_i - honest_j‖

        p = -σ ("std"),    -μ / ‖μ‖ ("unit")    or    -sign(μ) ("sign")

    μ and σ are mean and standard deviation of each coordinate over the h honest updates. One honest client, or all
    alike, leave no room: the mean itself is sent.

    honest: `[h, d]`.
    perturbation: p.
    start, tolerance: first γ of the search, which reaches up to twice that far, and its resolution; see `largest`.
        Both are in units of max_ij ‖honest_i - honest_j‖ / ‖p‖, in which γ is never above 2.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: start and tolerance (10 and 1e-5 in its code) are in units of p there; the largest γ is
    the same. Only the honest updates of the other clients are seen, not those that the attackers hold back.
    """
    mean = honest_mean(honest, b, "min_max")
    sent = pushed(honest, mean, perturbation, lambda to, among: bool(to.max() <= among.max()), start, tolerance)
    return sent.expand(b, -1).clone()
