"""DANE: clients solve a corrected problem of their own, the server averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.problem import Problem
from fedopt.registry import declare
from fedopt.similarity import asking
from fedopt.similarity.asking import Answer, Asking, Constant, Setting, Turn
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.walks import Walk, anchored, moved, stepped
from fedopt.types import Batches, Exchange, Info, Named, Optimizer, Programs, Replies, Rule


@declare(
    reference="Shamir, Srebro, Zhang 2014, 'Communication-Efficient Distributed Optimization using an Approximate "
    "Newton-type Method', arXiv 1312.7853, figure 1",
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@dataclass(frozen=True)
class dane:
    """Two rounds with everybody per iteration.

        v_m = argmin f_m(v) - ⟨∇f_m(x) - ∇f(x), v⟩ + (ρ/2) ‖v - x‖²;  x <- mean v_m

    l2: λ of (λ/2)‖x‖², part of every f_m. mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a
    power
        iteration over the clients. rho: weight of the proximal term; None: δ.
    newton: steps of Newton's method by which a client finds its proximal point (one is enough for quadratics); 0: one
    step
        of gradient descent with `lr` for each of its batches, for networks.

    Differences from the paper: η = 1, as in its experiments; their μ is ρ here.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    rho: Positive | None = None
    newton: Annotated[int, pydantic.Field(ge=0)] = 4
    lr: Positive = 0.1
    prox: Solving = Solving()

    def programs(self, problem: Problem) -> Programs:
        return asking.programs(self, problem, local_steps=self.newton)

    def init(self, problem: Problem, key: Tensor) -> Asking:
        return asking.init(self, problem, key)

    def plan(self, problem: Problem, state: Asking, key: Tensor) -> Exchange:
        return asking.plan(self, problem, state, key)

    def absorb(self, problem: Problem, state: Asking, replies: Replies, key: Tensor) -> tuple[Asking, Info]:
        return asking.absorb(self, problem, state, replies, key)

    def model(self, problem: Problem, state: Asking) -> Named:
        return {"params": state.params}

    def wanted(self) -> tuple[Constant, ...]:
        return (Constant("delta", self.delta, "f", "clients"),)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return anchored(Walk("anchor", x, x, x))

    def proceed(self, setting: Setting, own: Walk, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        own = moved(own, answers[0])
        if own.phase == "step":
            return anchored(own._replace(w=own.x))
        rho = self.rho or setting.constants["delta"]
        return stepped(setting, own, key, rho, 0.0, own.x, self.lr, some=setting.nobody)
