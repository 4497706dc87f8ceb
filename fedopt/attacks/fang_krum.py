"""Fang's attack on Krum: the longest step backwards that Krum still takes for the best update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.attacks.min_max import gram, sq_between
from fedopt.registry import declare


def chosen(between: Tensor, to: Tensor, b: int) -> bool:
    """Whether Krum takes the row that b attackers send, which lies `to [h]` from the honest rows, all squared.

    Its scores add up the h - 2 smallest squared distances to others, that is n - b - 2 of n = h + b rows; one at least.
    A tie is lost.
    """
    h = to.numel()
    near = max(h - 2, 1)
    others = torch.cat([between.clone().fill_diagonal_(torch.inf), to[:, None].expand(-1, b)], dim=1)
    honest = torch.topk(others, near, dim=1, largest=False).values.sum(dim=1)
    # the b - 1 other attackers are at distance 0
    sent = torch.topk(to, max(near - (b - 1), 0), largest=False).values.sum()
    return bool(sent < honest.min())


@declare(
    reference="Fang, Cao, Jia, Gong 2020, 'Local Model Poisoning Attacks to Byzantine-Robust Federated Learning',"
    " directed deviation with full knowledge",
    knowledge="omniscient",
    examples=({}, {"tolerance": 0.01}),
)
def fang_krum(honest: Tensor, *, b: int, tolerance: Positive = 1e-5) -> Tensor:
    """All attackers send a step against the signs of the honest mean, as long as Krum would choose it.

        sent = -λ s,    s = sign(μ),    λ the first of Λ, Λ/2, Λ/4, ... under which Krum chooses it

        Λ = √( min_i Σ_{nearest h - 2} ‖honest_i - honest_j‖² / ((n - 2b - 1) d) ) + max_i ‖honest_i‖ / √d

    with n = h + b. Krum with f = b is written out here, whatever rule the server has. Where Krum is not defined,
    n - 2b - 1 < 1, that factor is 1.

    honest: `[h, d]`.
    tolerance: the search ends unsuccessfully below this share of Λ, and sends that.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: s is the sign of the honest mean, where it takes the sign of what Krum would give
    without attackers; all attackers send the same, where it sets the others at random within a small distance; it
    ends the search at 1e-5 whatever the scale of the updates.
    """
    mean = honest_mean(honest, b, "fang_krum")
    signs = mean.sign()
    h, d = honest.shape
    products = gram(honest, mean, mean, signs)
    between = sq_between(products[:h, :h])
    length, turn, square = float(products[h, h]), float(products[h, h + 1]), float(products[h + 1, h + 1])
    to_origin = products.diagonal()[:h] + 2.0 * products[:h, h] + length

    def to(step: float) -> Tensor:
        return to_origin + 2.0 * step * (products[:h, h + 1] + turn) + step**2 * square

    nearest = between.sort(dim=1).values[:, 1 : max(h - 1, 2)].sum(dim=1).min()
    most = math.sqrt(float(nearest) / (max(h - b - 1, 1) * d)) + math.sqrt(float(to_origin.max()) / d)
    step = most
    while step > tolerance * most and not chosen(between, to(step), b):
        step /= 2.0
    return (-step * signs).expand(b, -1).clone()
