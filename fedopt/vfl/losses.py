"""The label owner's losses: value, gradient, smoothness, and the proximal map that the dual form needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedopt.registry import ConfigError

NEWTON = 100
"""Steps at most of Newton's method in the proximal map of the logistic loss; it takes about ln γ and a few."""


class Loss(NamedTuple):
    """A loss l(z; t) of one person, outputs `z [m, c]` and targets `t [m, c]`."""

    name: str
    each: Callable[[Tensor, Tensor], Tensor]
    """`(z, t) -> [m]`"""
    gradient: Callable[[Tensor, Tensor], Tensor]
    """`(z, t) -> [m, c]`"""
    smooth: float
    """A Lipschitz constant of the gradient."""
    prox: Callable[[Tensor, Tensor, float], Tensor] | None
    """`(v, t, γ) -> argmin_z γ l(z; t) + ‖z - v‖² / 2`; None where the outputs of a person are coupled."""


def _squares(z: Tensor, t: Tensor) -> Tensor:
    return 0.5 * (z - t).square().sum(dim=1)


squares = Loss("squares", _squares, lambda z, t: z - t, 1.0, lambda v, t, gamma: (v + gamma * t) / (1.0 + gamma))
"""‖z - t‖² / 2. Targets of two classes are ±1, of more classes 0 and 1."""


def _logistic(z: Tensor, t: Tensor) -> Tensor:
    return nn.functional.softplus(-t * z).sum(dim=1)


def _logistic_prox(v: Tensor, t: Tensor, gamma: float) -> Tensor:
    """z = t x for the root x of x - u - γ σ(-x), u = t v, by Newton's method.

    That function increases, is convex below 0 and concave above. From the point of [u, u + γ], where the root is, that
    is nearest to 0, all steps go the same way and none goes past the root.
    """
    u = t * v
    x = torch.zeros_like(u).clamp(u, u + gamma)
    for _ in range(NEWTON):
        sigma = torch.sigmoid(-x)
        step = (x - u - gamma * sigma) / (1.0 + gamma * sigma * (1.0 - sigma))
        x = x - step
        if bool((step.abs() <= torch.finfo(x.dtype).eps * x.abs()).all()):
            break
    return t * x


logistic = Loss("logistic", _logistic, lambda z, t: -t * torch.sigmoid(-t * z), 0.25, _logistic_prox)
"""log(1 + exp(-t z)), t = ±1: two classes."""


def _softmax(z: Tensor, t: Tensor) -> Tensor:
    return torch.logsumexp(z, dim=1) - (z * t).sum(dim=1)


softmax = Loss("softmax", _softmax, lambda z, t: torch.softmax(z, dim=1) - t, 0.5, None)
"""-log softmax(z)[class]; its Hessian diag(p) - p pᵀ has no eigenvalue above 1/2."""

HUBER = 1.0
"""Residual at which the Huber loss goes from a square to a line."""


def _huber(z: Tensor, t: Tensor) -> Tensor:
    return nn.functional.huber_loss(z, t, reduction="none", delta=HUBER).sum(dim=1)


def _huber_prox(v: Tensor, t: Tensor, gamma: float) -> Tensor:
    residual = v - t
    inner = residual.abs() <= HUBER * (1.0 + gamma)
    return t + torch.where(inner, residual / (1.0 + gamma), residual - gamma * HUBER * residual.sign())


huber = Loss("huber", _huber, lambda z, t: (z - t).clamp(-HUBER, HUBER), 1.0, _huber_prox)
"""u² / 2 for residuals |u| <= 1, |u| - 1/2 beyond."""

LOSSES = {loss.name: loss for loss in (squares, logistic, softmax, huber)}


def outputs(name: str, classes: int, task: str) -> int:
    """c, how many outputs a loss reads for a person.

    Raises ConfigError for a loss that does not fit the labels.
    """
    if name not in LOSSES:
        raise ConfigError("model.loss", f"one of {', '.join(LOSSES)} is needed; '{name}' was given")
    if task == "regression":
        if name in ("logistic", "softmax"):
            raise ConfigError("model.loss", f"'{name}' needs classes and the labels are numbers; take squares or huber")
        return 1
    if name == "softmax":
        return classes
    if name == "logistic" and classes != 2:
        raise ConfigError("model.loss", f"'logistic' needs two classes, the data have {classes}; take softmax")
    return 1 if classes == 2 else classes


def targets(name: str, y: Tensor, classes: int, task: str, dtype: torch.dtype) -> Tensor:
    """Targets `[m, c]` of labels `y [m]`: numbers as they are, ±1 for two classes, else 0 and 1 by class.

    Raises ConfigError for a loss that does not fit the labels.
    """
    count = outputs(name, classes, task)
    if task == "regression":
        return y.to(dtype).reshape(-1, 1)
    if count == 1:
        return 2.0 * y.to(dtype).reshape(-1, 1) - 1.0
    return nn.functional.one_hot(y.to(torch.int64), classes).to(dtype)
