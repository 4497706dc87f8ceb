"""Accelerated gradient descent: one round with everybody per iteration, without the server's data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions
from fedopt.similarity.home import NotNegative, Positive, Share, Solving
from fedopt.types import Batches, Optimizer, Rule


class Momentum(NamedTuple):
    """State."""

    x: Tensor
    y: Tensor


@declare(
    reference="Nesterov 2004, Introductory Lectures on Convex Optimization, scheme 2.2.9",
    examples=({"l2": 0.5, "smooth": 8.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class agd:
    """What methods under similarity are compared with.

        x⁺ = y - ∇h(y)/L,  y = x⁺ + β (x⁺ - x),  β = (1 - √(μ/L)) / (1 + √(μ/L))

    l2: λ of (λ/2)‖x‖². mu: μ; None: l2. smooth: L; None: measured by a power iteration over the clients. The server
    needs
    no data.

    Differences from the reference: constant momentum, for strong convexity.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    smooth: Positive | None = None
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        if self.rare or self.rare_classes:
            half = None if self.smooth is None else 0.5 * self.smooth
            return (Constant("smooth_f", half, "f", "smoothness"), Constant("smooth_g", half, "g", "smoothness"))
        return (Constant("smooth", self.smooth, "f", "smoothness"),)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return Turn(Momentum(x, x), setting.everywhere(x), x)

    def proceed(self, setting: Setting, own: Momentum, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        smooth = sum(setting.constants[n] for n in ("smooth", "smooth_f", "smooth_g") if n in setting.constants)
        slope = torch.stack([answer.vector for answer in answers]).sum(dim=0) + self.l2 * own.y
        x = own.y - slope / smooth
        root = math.sqrt(setting.mu / smooth)
        y = x + (1.0 - root) / (1.0 + root) * (x - own.x)
        return Turn(Momentum(x, y), setting.everywhere(y), x)
