"""Variance reduction with complexity separation: one of two groups is asked at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity import epochs
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_groups
from fedopt.similarity.epochs import Epoch, Estimator
from fedopt.similarity.home import NotNegative, Positive, Share, Solving
from fedopt.similarity.separated import either
from fedopt.types import Batches, Optimizer, Rule


@declare(
    reference="Bylinkin, Skorik, Bystrov, Berezin, Avetisyan, Beznosikov 2026, 'Accelerated Methods with Complexity "
    "Separation Under Data Similarity for Federated Learning Problems', arXiv 2601.08614, algorithm 2",
    examples=({"l2": 0.5, "rare_classes": (0,), "delta_f": 1.0, "delta_g": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class vrcs:
    """Epochs (see `fedopt.similarity.epochs`) within which one group is asked at a time, the rarer one more often.

        e = [P_f(x) - P_f(w)]/p with probability p, else [P_g(x) - P_g(w)]/(1 - p);  p = q = δ_f²/(δ_f² + δ_g²)
        θ = min{√q / (c √(2(δ_f² + δ_g²))), 1/(2(δ_f + δ_g))}

    Each epoch asks both groups at its anchor. O~(δ_f/μ) rounds with f, O~((δ_g/δ_f) δ_g/μ) with g.

    c: 2 works in practice, 8 is what theory of such epochs asks for. probability: p and q in place of the formula.
    theta: θ in place of the formula.

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
    c: Positive = 2.0
    probability: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    theta: Positive | None = None
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_groups(self.delta_f, self.delta_g)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return epochs.begin(setting, self._estimator(setting), x)

    def proceed(self, setting: Setting, own: Epoch, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        return epochs.proceed(setting, self._estimator(setting), own, answers, key)

    def _estimator(self, setting: Setting) -> Estimator:
        return either(setting, self.c, self.probability, self.theta, None)
