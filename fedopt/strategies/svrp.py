"""Stochastic variance-reduced proximal point: proximal steps of one client at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.walks import Walk, anchored, moved, stepped
from fedopt.types import Batches, Optimizer, Rule


@declare(
    reference="Khaled, Jin 2023, 'Faster Federated Optimization under Second-order Similarity', arXiv 2209.02257, "
    "algorithm 2",
    examples=({"l2": 0.5, "delta": 2.0, "passes": 5},),
    exceptions={
        "one client": "the server's own data is no client's, and steps are proximal ones",
        "relabelling": "another client is drawn where they stand in another order",
        "identical": "the reference is renewed as often as one of the clients is asked",
    },
)
@by_questions
@dataclass(frozen=True)
class svrp:
    """Steps of one client m, uniform; with probability p: w <- x, and everybody is asked for a gradient.

        x <- prox_(η f_m)(x - η (∇f(w) - ∇f_m(w))), solved by client m

        η = factor μ/δ², p = 1/M:  O~(M + δ²/μ²) messages

    l2: λ of (λ/2)‖x‖², part of every f_m. mu: μ; None: l2. delta: δ of (1/M) Σ ‖∇f_m(x) - ∇f(x) - ∇f_m(y) + ∇f(y)‖² <=
        δ² ‖x - y‖²; None: the largest ‖∇²f_m - ∇²f‖, measured by a power iteration over the clients, which is no
        smaller.
    eta, probability: in place of the formulas.
    passes: of a client over all its samples to find its proximal point, each a step of conjugate gradients (exact for
        quadratics after d of them); 0: one step of gradient descent with `lr` for each of its batches, for networks.

    Differences from the paper: clients keep ∇f_m(w), and are told ∇f(w) with x.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    factor: Positive = 0.5
    eta: Positive | None = None
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    passes: Annotated[int, pydantic.Field(ge=0)] = 30
    lr: Positive = 0.1
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return anchored(Walk("anchor", x, x, x))

    def proceed(self, setting: Setting, own: Walk, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        own = moved(own, answers[0])
        p = self.probability or 1.0 / setting.problem.pool.numel()
        if own.phase == "step" and float(keys.uniform(keys.fold(key, "reference"), 1)[0]) < p:
            return anchored(own._replace(w=own.x))
        eta = self.eta or self.factor * setting.mu / setting.constants["delta"] ** 2
        return stepped(setting, own, key, 1.0 / eta, 0.0, own.x, self.lr, passes=self.passes)
