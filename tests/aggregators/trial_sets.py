"""Trial functions written out by hand, for the rules that live on one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedopt.types import Trial


def logistic_trial(x: Tensor, y: Tensor, base: Tensor) -> Trial:
    """Mean logistic loss of the linear model at base + delta on samples x [N, d], y in {0, 1}; convex in delta.

    As two classes, its answers are (0, z).
    """

    def answers(deltas: Tensor) -> Tensor:
        return (base + deltas) @ x.T

    def loss(deltas: Tensor, rows: Tensor | None = None) -> Tensor:
        z, wanted = answers(deltas), y
        if rows is not None:
            z, wanted = z[:, rows], y[rows]
        return torch.nn.functional.softplus((1.0 - 2.0 * wanted) * z).mean(dim=1)

    def grad(delta: Tensor, rows: Tensor | None = None) -> Tensor:
        held, wanted = (x, y) if rows is None else (x[rows], y[rows])
        z = held @ (base + delta)
        return (torch.sigmoid(z) - wanted) @ held / held.shape[0]

    def outputs(deltas: Tensor) -> Tensor:
        z = answers(deltas)
        return torch.stack([torch.zeros_like(z), z], dim=-1)

    return Trial(loss, grad, outputs, y.to(torch.int64))


def looped_loss(x: Tensor, y: Tensor, point: list[float], rows: list[int] | None = None) -> float:
    """The same loss at a point, sample by sample."""
    rows = list(range(x.shape[0])) if rows is None else rows
    total = 0.0
    for j in rows:
        z = sum(float(a) * p for a, p in zip(x[j], point, strict=True))
        total += math.log1p(math.exp(-abs(z))) + max(-z if y[j] > 0.5 else z, 0.0)
    return total / len(rows)


def looped_gradient(x: Tensor, y: Tensor, point: list[float], rows: list[int]) -> list[float]:
    """Its gradient at a point, sample by sample."""
    total = [0.0] * x.shape[1]
    for j in rows:
        z = sum(float(a) * p for a, p in zip(x[j], point, strict=True))
        gap = 1.0 / (1.0 + math.exp(-z)) - float(y[j])
        for k in range(x.shape[1]):
            total[k] += gap * float(x[j, k])
    return [value / len(rows) for value in total]


def drawn(
    seed: int, n: int | None = None, d: int = 4, samples: int = 40
) -> tuple[Tensor, Tensor, Tensor, Tensor, Trial]:
    """Updates [n, d], samples, labels, base and the trial function around it; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = int(torch.randint(2, 9, (), generator=generator)) if n is None else n
    x = normal(samples, d)
    y = (torch.sigmoid(2.0 * x @ normal(d)) > torch.rand(samples, generator=generator, dtype=torch.float64)).double()
    base, updates = normal(d), normal(n, d) * 3.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return updates, x, y, base, logistic_trial(x, y, base)
