"""Accelerated extragradient sliding: optimal rounds under similarity of the server's data to everybody's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, at_home, by_questions
from fedopt.similarity.home import NotNegative, Positive, Share, Solving
from fedopt.similarity.sliding import sliding
from fedopt.types import Batches, Info, Optimizer, Rule


class Ahead(NamedTuple):
    """Between the two questions of an iteration."""

    x: Tensor
    x_f: Tensor
    """Also v of the estimating sequence."""
    middle: bool
    """Whether the gradient at x_f is asked for, after the step."""
    lam: float
    """Of the estimating sequence: λ, S, R, a,"""
    s: float
    r: float
    a: float
    before: Tensor
    """y of the iteration before, and what P was there, for λ on line; else empty."""
    p_before: Tensor


@declare(
    reference="Kovalev, Beznosikov, Borodich, Gasnikov, Scutari 2022, 'Optimal Gradient Sliding and its Application to"
    " Distributed Optimization Under Similarity', arXiv 2205.15136, algorithm 1",
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are accelerated"},
)
@by_questions
@dataclass(frozen=True)
class aeg:
    """Server part h_1, communicated part p = h - h_1 that is δ-smooth; two rounds with everybody per iteration.

        x_g = τ x + (1 - τ) x_f
        x_f = argmin_v ⟨∇p(x_g), v - x_g⟩ + ‖v - x_g‖² / (2θ) + h_1(v)                         at the server
        x   = x + η α (x_f - x) - η ∇h(x_f)

    τ = min{1, √μ/(2√δ)}, θ = 1/(2δ), η = min{1/(2μ), 1/(2√(μδ))}, α = μ.
    O(√(δ/μ) log 1/ε) rounds, whatever the condition number of h.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta: δ; None: measured by a power iteration over the
        clients before the first iteration. With groups, δ is the sum of theirs.
    form: `estimating` is the same method by estimating sequences: λ = `lam` δ in place of 1/θ; with `online`, λ follows
        the largest change of P per length of a step that was seen, doubled.
    rare, rare_classes: clients, or classes, of the group g of methods that tell groups apart; here all are asked alike.
    prox: how the server solves its subproblem.

    Differences from the paper: ‖∇A(v)‖ <= tolerance · ‖v - x_g‖/θ in place of a bound by the distance to the exact
    solution, which nobody knows.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    form: Literal["sliding", "estimating"] = "sliding"
    lam: Positive = 2.0
    online: bool = False
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return at_home(self.delta, bool(self.rare or self.rare_classes))

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        own = Ahead(x, x, False, self.lam * setting.delta, 0.0, 1.0, 0.0, x[:0], x[:0])
        return self._ask(setting, own)

    def proceed(self, setting: Setting, own: Ahead, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        return (self._slide if self.form == "sliding" else self._estimate)(setting, own, answers, key)

    def _slide(self, setting: Setting, own: Ahead, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        numbers = sliding(setting.mu, setting.delta)
        if not own.middle:
            x_g = numbers.ahead(own.x, own.x_f)
            found = setting.home.prox(setting.differences(x_g, answers), x_g, numbers.rho, key)
            return self._ask(setting, own._replace(x_f=found.point, middle=True), {"server_steps": found.steps})
        slope = setting.differences(own.x_f, answers) + setting.home.total(own.x_f)
        x = numbers.after(own.x, own.x_f, slope)
        return self._ask(setting, own._replace(x=x, middle=False))

    def _estimate(self, setting: Setting, own: Ahead, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        mu, x, v = setting.mu, own.x, own.x_f
        if not own.middle:
            a, y = self._extrapolated(own)
            p, lam = setting.differences(y, answers), own.lam
            found = setting.home.prox(p, y, lam, key)
            if self.online and own.before.numel() and bool((y != own.before).any()):
                lam = max(lam, 2.0 * float((p - own.p_before).norm() / (y - own.before).norm()))
            own = own._replace(x=found.point, middle=True, lam=lam, a=a, before=y, p_before=p)
            return self._ask(setting, own, {"server_steps": found.steps, "lam": lam})
        slope = setting.differences(x, answers) + setting.home.total(x)
        v = (mu * own.a * x + own.r * v - own.a * slope) / (mu * own.a + own.r)
        return self._ask(setting, own._replace(x_f=v, middle=False, s=own.s + own.a, r=own.r + mu * own.a))

    def _extrapolated(self, own: Ahead) -> tuple[float, Tensor]:
        """(a, y): λ = (S + a) R / (2 a²), y = (S x + a v) / (S + a)."""
        a = (own.r + math.sqrt(own.r**2 + 8.0 * own.lam * own.r * own.s)) / (4.0 * own.lam)
        return a, (own.s * own.x + a * own.x_f) / (own.s + a)

    def _ask(self, setting: Setting, own: Ahead, info: Info = {}) -> Turn:  # noqa: B006 - read-only
        if self.form == "sliding":
            point = own.x_f if own.middle else sliding(setting.mu, setting.delta).ahead(own.x, own.x_f)
            return Turn(own, setting.everywhere(point), own.x_f, info)
        point = own.x if own.middle else self._extrapolated(own)[1]
        return Turn(own, setting.everywhere(point), own.x, info)
