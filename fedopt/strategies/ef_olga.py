"""EF-OLGA: contractions with error feedback under data similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.problem import Problem
from fedopt.registry import declare
from fedopt.similarity import epochs, oracles
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.epochs import Epoch, Estimator
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.shifted import compressed, promised
from fedopt.types import Batches, Codec, Optimizer, Rule


@declare(
    reference="Bylinkin, Beznosikov 2024, 'Accelerated Methods with Compressed Communications for Distributed "
    "Optimization Problems under Data Similarity', arXiv 2412.16414, algorithms 3 and 4",
    vectors=("difference",),
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class ef_olga:
    """`olga` for contractions, ‖C(v) - v‖² <= (1 - 1/β) ‖v‖², with error feedback within each epoch.

        client: C(e_m + d_m), e_m <- e_m + d_m - C(e_m + d_m);  d_m as in `olga`, e_m = 0 at the start of an epoch
        N ~ Geom(p), p = 1/β;  θ = p^(3/2) / (24 δ);  τ = min{√(μθ/p)/18, 1/18}, α = θ/(36 p τ)

    At the end of an epoch clients send e_m, whose mean, times θ, is taken from y in the term (x - y)/θ of the outer
    step.
    O~(1 + β^(1/4) √(δ/μ)) of transmission time; constants of theory are very small.

    c: 24 of the formula. beta: β; None: of the codec.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a
        power iteration over the clients. theta, probability: in place of the formulas. prox: how the server solves its
        subproblem. What is compressed is [compression]'s vector `difference`.
        It needs compression.feedback = "ef14".

    Differences from the paper: differences are not multiplied by θ before they are compressed, which is the same for
    codecs
    that commute with factors (Top-K, rounding to a relative grid).
    """

    aggregator: Rule
    server: Optimizer
    codec: Codec | None = None
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    c: Positive = 24.0
    beta: Annotated[float, pydantic.Field(ge=1)] | None = None
    theta: Positive | None = None
    probability: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def lengths(self, problem: Problem) -> dict[str, int]:
        return {oracles.DIFFERENCE: problem.d}

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return epochs.begin(setting, self._estimator(setting), x)

    def proceed(self, setting: Setting, own: Epoch, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        return epochs.proceed(setting, self._estimator(setting), own, answers, key)

    def _estimator(self, setting: Setting) -> Estimator:
        beta = self.beta if self.beta is not None else 1.0 / max(1.0 - promised(self.codec, setting), 1e-12)
        p = self.probability or 1.0 / beta
        theta = self.theta or p**1.5 / (self.c * setting.constants["delta"])
        return compressed(setting, p, theta, 18.0, closing="closing")
