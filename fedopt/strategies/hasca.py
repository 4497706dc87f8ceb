"""Heterogeneity-aware separation by a lagging reference: the similar group is asked now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Question, Setting, Turn, by_questions, of_groups
from fedopt.similarity.home import Count, NotNegative, Positive, Share, Solving
from fedopt.types import Batches, Optimizer, Rule


class Lagging(NamedTuple):
    """State."""

    fresh: bool
    """Whether f was asked, too."""
    x: Tensor
    w: Tensor
    at_w: Tensor
    steps: int


@declare(
    reference="'Complexity-Separated Schemes for Addressing Structured Heterogeneity in Federated Learning', "
    "OpenReview q5ROBCjWHE (HASCA, C-HASCA)",
    examples=({"l2": 0.5, "rare_classes": (0,), "delta_f": 1.0, "delta_g": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class hasca:
    """P_f is kept from a reference point w, P_g is asked for at every step.

        x <- argmin_v ⟨P_f(w) + P_g(x), v - x⟩ + ‖v - x‖²/(2θ) + h_1(v),  θ = factor/δ_g                [g is asked]
        with probability p = min(1, δ_f/δ_g):  w <- x                                                 [f is asked]

    blocks: `c_hasca` of the publication in this form: with 2, every other step moves the first half of the coordinates,
    the
        others the second half. period: w is renewed after so many steps in place of at random. probability: p.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta_f, delta_g: δ_f and δ_g; None: measured by power
        iterations over the groups. rare, rare_classes: clients, or classes, of the group g (see `fedopt.similarity`);
        the group that is nearer to
        the server's data becomes f. prox: how the server solves its subproblem.

    Differences from the paper: its pseudocode was not at hand, and less of it is known than of its companion's; a
    reconstruction of low confidence.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta_f: Positive | None = None
    delta_g: Positive | None = None
    factor: Positive = 0.5
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    period: Count | None = None
    blocks: Literal[1, 2] = 1
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_groups(self.delta_f, self.delta_g)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        setting.need_two()
        return Turn(Lagging(True, x, x, x[:0], 0), (Question("f", x), Question("g", x)), x)

    def proceed(self, setting: Setting, own: Lagging, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        if own.fresh:
            own = own._replace(fresh=False, at_w=setting.difference("f", own.x, answers[0]))
        at_x = setting.difference("g", own.x, answers[-1])
        found = setting.home.prox(own.at_w + at_x, own.x, setting.constants["delta_g"] / self.factor, key)
        x = found.point
        if self.blocks == 2:
            half = torch.arange(x.numel()) < x.numel() // 2
            x = torch.where(half == (own.steps % 2 == 0), x, own.x)
        own = own._replace(x=x, steps=own.steps + 1)
        if self._renews(setting, own, key):
            return Turn(own._replace(fresh=True, w=x), (Question("f", x), Question("g", x)), x)
        return Turn(own, (Question("g", x),), x, {"server_steps": found.steps})

    def _renews(self, setting: Setting, own: Lagging, key: Tensor) -> bool:
        if self.period is not None:
            return own.steps % self.period == 0
        p = self.probability
        if p is None:
            p = min(1.0, setting.constants["delta_f"] / setting.constants["delta_g"])
        return float(keys.uniform(keys.fold(key, "reference"), 1)[0]) < p
