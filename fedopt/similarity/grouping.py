"""Which clients are like the server's data and which are not, from differences of gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.similarity.home import Home

PROBES = 3
"""Directions along which gradients are compared: the server's own, and random ones."""


class Grouping(NamedTuple):
    """What has been asked so far."""

    points: Tensor
    """The first point and one for each direction `[1 + PROBES, d]`."""
    first: Tensor
    """Everybody's gradient at the first point, less the server's `[n, d]`; empty before."""
    squares: Tensor
    """Σ over directions of ‖[∇f_m(x_k) - ∇f_1(x_k)] - [∇f_m(x_0) - ∇f_1(x_0)]‖² / ‖x_k - x_0‖² `[n]`."""
    asked: int


def probing(home: Home, x: Tensor, clients: int, key: Tensor) -> Grouping:
    """Points at distance 1 from x: against the server's gradient, and in random directions."""
    slope = home.gradient("f", x)
    drawn = keys.normal(keys.fold(key, "probes"), PROBES - 1, x.numel(), dtype=x.dtype)
    steps = torch.cat([-slope[None], drawn])
    steps = steps / steps.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return Grouping(torch.cat([x[None], x + steps]), x.new_zeros(0), x.new_zeros(clients), 0)


def probed(own: Grouping, home: Home, rows: Tensor) -> Grouping:
    """After everybody's gradient at the next point `[n, d]`."""
    point = own.points[own.asked]
    apart = rows - home.gradient("f", point)
    if own.asked == 0:
        return own._replace(first=apart, asked=1)
    moved = (point - own.points[0]).square().sum()
    return own._replace(squares=own.squares + (apart - own.first).square().sum(dim=1) / moved, asked=own.asked + 1)


def rare_ones(own: Grouping, share: float | None) -> Tensor:
    """Ids of the clients that are least like the server `[k]`, 1 <= k < n.

    share: how many of all, at least one and not all. None: the cut of the sorted logarithms into two groups with the
    least squares within groups.
    """
    logs = own.squares.clamp(min=torch.finfo(own.squares.dtype).tiny).log()
    order = torch.argsort(logs, stable=True)
    n = order.numel()
    if share is not None:
        return order[n - min(max(1, round(share * n)), n - 1) :].sort().values
    ordered = logs[order]
    within = [
        float(((ordered[:k] - ordered[:k].mean()) ** 2).sum() + ((ordered[k:] - ordered[k:].mean()) ** 2).sum())
        for k in range(1, n)
    ]
    cut = 1 + min(range(n - 1), key=within.__getitem__)
    return order[cut:].sort().values
