"""DANE: clients solve a corrected problem of their own, the server averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.walks import Walk, anchored, moved, stepped
from fedopt.types import Batches, Optimizer, Rule


@declare(
    reference="Shamir, Srebro, Zhang 2014, 'Communication-Efficient Distributed Optimization using an Approximate "
    "Newton-type Method', arXiv 1312.7853, figure 1",
    examples=({"l2": 0.5, "delta": 2.0, "passes": 5},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class dane:
    """Two rounds with everybody per iteration.

        v_m = argmin f_m(v) - ⟨∇f_m(x) - ∇f(x), v⟩ + (ρ/2) ‖v - x‖²;  x <- mean v_m

    l2: λ of (λ/2)‖x‖², part of every f_m. mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a
        power iteration over the clients. rho: weight of the proximal term; None: δ.
    passes: of a client over all its samples to find its proximal point, each a step of conjugate gradients (exact for
        quadratics after d of them); 0: one step of gradient descent with `lr` for each of its batches, for networks.

    Differences from the paper: η = 1, as in its experiments; their μ is ρ here.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    rho: Positive | None = None
    passes: Annotated[int, pydantic.Field(ge=0)] = 30
    lr: Positive = 0.1
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return anchored(Walk("anchor", x, x, x))

    def proceed(self, setting: Setting, own: Walk, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        own = moved(own, answers[0])
        if own.phase == "step":
            return anchored(own._replace(w=own.x))
        rho = self.rho or setting.constants["delta"]
        return stepped(setting, own, key, rho, 0.0, own.x, self.lr, passes=self.passes, some=setting.nobody)
