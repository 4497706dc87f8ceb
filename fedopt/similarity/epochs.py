"""Epochs of variance-reduced proximal steps at the server, plain or accelerated by KatyushaX's coupling.

An epoch begins at an anchor w, where everybody is asked for a gradient. Then N times, N ~ Geom(q) on 1, 2, ...:

    e = an unbiased estimate of [P(x) - P(w)], P = ∇(h - h_1)                           who is asked: `Estimator`
    x <- argmin_v ⟨e + P(w), v - x⟩ + ‖v - x‖² / (2θ) + h_1(v)

Accelerated: x = τ z + (1 - τ) y;  y <- epoch(x);  G = q (P(y) - P(x) + (x - y)/θ);
z <- (z/α + μ y - G) / (1/α + μ);  τ = min{√(μθ/q)/k, 1/k}, α = θ/(2 k q τ), k = 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.similarity.asking import Answer, Question, Setting, Turn
from fedopt.types import Info


class Estimator(NamedTuple):
    """Who is asked within an epoch, and what is made of it."""

    q: float
    """Of the geometric law; 1/q steps in the mean."""
    theta: float
    ask: Callable[[Tensor, Tensor, Tensor, Tensor], Question]
    """`(x, w, P's gradients at home, key) -> Question`"""
    estimate: Callable[[Question, Epoch, Answer], Tensor]
    """e, of the answer."""
    program: str = "gradient"
    """Of the question at the anchor."""
    closing: str = "gradient"
    """Of the question at the end of an epoch, where it is accelerated."""
    coupling: float | None = 4.0
    """k of the acceleration; None: epochs follow one another."""


class Epoch(NamedTuple):
    """State: where the epoch is."""

    phase: str
    """`anchor`, `inner` or `end`."""
    y: Tensor
    z: Tensor
    w: Tensor
    at_w: tuple[Tensor, ...]
    """P of each group at the anchor."""
    x: Tensor
    left: int
    asked: Question
    """Last of the questions within the epoch."""
    epochs: int
    inner: int


def begin(setting: Setting, method: Estimator, x: Tensor) -> Turn:
    """The first epoch at x."""
    nothing = Question("f", x)
    own = Epoch("anchor", x, x, x, (), x, 0, nothing, 0, 0)
    return _anchored(setting, method, own)


def proceed(setting: Setting, method: Estimator, own: Epoch, answers: tuple[Answer, ...], key: Tensor) -> Turn:
    """The next questions, from the answers to those before."""
    if own.phase == "anchor":
        at_w = tuple(setting.difference(part, own.w, a) for part, a in zip(setting.parts, answers, strict=True))
        own = own._replace(at_w=at_w, x=own.w, left=geometric(keys.fold(key, "length"), method.q), phase="inner")
        return _inner(setting, method, own, key)
    if own.phase == "inner":
        e = method.estimate(own.asked, own, answers[0])
        linear = e + torch.stack(own.at_w).sum(dim=0)
        found = setting.home.prox(linear, own.x, 1.0 / method.theta, key)
        own = own._replace(x=found.point, left=own.left - 1, inner=own.inner + 1)
        info: Info = {"server_steps": found.steps}
        if own.left:
            return _inner(setting, method, own, key, info)
        info |= {"epochs": own.epochs + 1, "inner": own.inner}
        if method.coupling is None:
            after = own._replace(phase="anchor", w=own.x, y=own.x, epochs=own.epochs + 1)
            return _anchored(setting, method, after, info)
        after = own._replace(phase="end", y=own.x)
        return Turn(after, setting.everywhere(own.x, method.closing), own.x, info)
    return _coupled(setting, method, own, answers)


def _coupled(setting: Setting, method: Estimator, own: Epoch, answers: tuple[Answer, ...]) -> Turn:
    assert method.coupling is not None
    q, theta, mu, k = method.q, method.theta, setting.mu, method.coupling
    tau = min(math.sqrt(mu * theta / q) / k, 1.0 / k)
    alpha = theta / (2.0 * k * q * tau)
    y = own.x
    # what compression kept back, told as a descent, is made up for in the step alone
    ended = y + theta * answers[0].beside if answers[0].beside.numel() else y
    drift = setting.differences(y, answers) - torch.stack(own.at_w).sum(dim=0)
    g = q * (drift + (own.w - ended) / theta)
    z = (own.z / alpha + mu * y - g) / (1.0 / alpha + mu)
    w = tau * z + (1.0 - tau) * y
    return _anchored(setting, method, own._replace(phase="anchor", y=y, z=z, w=w, epochs=own.epochs + 1))


def _anchored(setting: Setting, method: Estimator, own: Epoch, info: Info = {}) -> Turn:  # noqa: B006 - read-only
    return Turn(own, setting.everywhere(own.w, method.program), own.y, info)


def _inner(setting: Setting, method: Estimator, own: Epoch, key: Tensor, info: Info = {}) -> Turn:  # noqa: B006
    asked = method.ask(own.x, own.w, torch.stack(own.at_w), keys.fold(key, "inner"))
    return Turn(own._replace(asked=asked), (asked,), own.x if method.coupling is None else own.y, info)


def geometric(key: Tensor, q: float) -> int:
    """N >= 1 with P(N > n) = (1 - q)^n, mean 1/q."""
    if q >= 1.0:
        return 1
    u = 1.0 - float(keys.uniform(key, 1, dtype=torch.float64)[0])  # in (0, 1]
    return max(1, math.ceil(math.log(u) / math.log1p(-q)))
