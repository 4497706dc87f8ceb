"""Accelerated extragradient sliding that asks one of two groups at random."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Question, Setting, Turn, by_questions, of_groups
from fedopt.similarity.home import NotNegative, Positive, Share, Solving
from fedopt.similarity.sliding import Sliding, sliding
from fedopt.types import Batches, Info, Optimizer, Rule

log = logging.getLogger(__name__)


class Between(NamedTuple):
    """Between the two questions of an iteration."""

    x: Tensor
    x_f: Tensor
    middle: bool
    first: float
    """Norm of the first estimated gradient."""
    part: str = "f"
    """Who was asked."""


@declare(
    reference="Bylinkin, Skorik, Bystrov, Berezin, Avetisyan, Beznosikov 2026, 'Accelerated Methods with Complexity "
    "Separation Under Data Similarity for Federated Learning Problems', arXiv 2601.08614, algorithm 1 "
    "('SC-AccExtragradient')",
    examples=({"l2": 0.5, "rare_classes": (0,), "delta_f": 1.0, "delta_g": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class sc_aeg:
    """`aeg` in which each evaluation of p's gradient asks one group alone.

        ∇p(y) ≈ P_f(y)/p with probability p, else P_g(y)/(1 - p),  p = √δ_f / (√δ_f + √δ_g)
        θ and η of `aeg` for L_p = δ_f + δ_g, both times `factor`

    Comes to a neighbourhood of the solution alone, which shrinks with `factor`; at 1 it may diverge where δ_g/δ_f is
    large,
    and a warning is logged when the estimated gradient grows. `c_aeg` has no such neighbourhood.

    probability: p in place of the formula. both: both groups are asked each time, which is `aeg`. factor: s.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta_f, delta_g: δ_f and δ_g; None: measured by power
        iterations over the groups. rare, rare_classes: clients, or classes, of the group g (see `fedopt.similarity`);
        the group that is nearer to
        the server's data becomes f. prox: how the server solves its subproblem.

    Differences from the paper: its pseudocode was not at hand; this is a reconstruction along its published rates.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta_f: Positive | None = None
    delta_g: Positive | None = None
    probability: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    both: bool = False
    factor: Annotated[float, pydantic.Field(gt=0, le=1)] = 1 / 16
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_groups(self.delta_f, self.delta_g)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        setting.need_two()
        return self._ask(setting, Between(x, x, False, 0.0), key)

    def proceed(self, setting: Setting, own: Between, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        numbers = self._numbers(setting)
        point = own.x_f if own.middle else numbers.ahead(own.x, own.x_f)
        drift = self._drift(setting, own, point, answers)
        if not own.middle:
            found = setting.home.prox(drift, point, numbers.rho, key)
            return self._ask(setting, own._replace(x_f=found.point, middle=True), key, {"server_steps": found.steps})
        slope = drift + setting.home.total(point)
        norm = float(slope.norm())
        if own.first and norm > 1e3 * own.first:
            log.warning(
                "the estimated gradient has grown from %.3g to %.3g; set strategy.factor lower", own.first, norm
            )
        own = own._replace(x=numbers.after(own.x, own.x_f, slope), middle=False, first=own.first or norm)
        return self._ask(setting, own, key)

    def _ask(self, setting: Setting, own: Between, key: Tensor, info: Info = {}) -> Turn:  # noqa: B006 - read-only
        point = own.x_f if own.middle else self._numbers(setting).ahead(own.x, own.x_f)
        if self.both:
            return Turn(own, setting.everywhere(point), own.x_f, info)
        coin = float(keys.uniform(keys.fold(key, "group"), 1)[0])
        part = "f" if coin < self._probability(setting) else "g"
        return Turn(own._replace(part=part), (Question(part, point),), own.x_f, info)

    def _drift(self, setting: Setting, own: Between, point: Tensor, answers: tuple[Answer, ...]) -> Tensor:
        if self.both:
            return setting.differences(point, answers)
        p = self._probability(setting)
        return setting.difference(own.part, point, answers[0]) / (p if own.part == "f" else 1.0 - p)

    def _probability(self, setting: Setting) -> float:
        if self.probability is not None:
            return self.probability
        f, g = (math.sqrt(setting.constants[name]) for name in ("delta_f", "delta_g"))
        return f / (f + g)

    def _numbers(self, setting: Setting) -> Sliding:
        return sliding(setting.mu, setting.constants["delta_f"] + setting.constants["delta_g"], self.factor)
