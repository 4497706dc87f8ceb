"""OLGA: compressed differences of gradients under data similarity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.problem import Problem
from fedopt.registry import ConfigError, declare
from fedopt.similarity import epochs, oracles
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.epochs import Epoch, Estimator
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.shifted import compressed, promised
from fedopt.types import Batches, Codec, Optimizer, Rule


@declare(
    reference="Bylinkin, Beznosikov 2024, 'Accelerated Methods with Compressed Communications for Distributed "
    "Optimization Problems under Data Similarity', arXiv 2412.16414, algorithms 1 and 2",
    vectors=("difference",),
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={
        "one client": "the server's own data is no client's, and steps are proximal ones",
        "identical": "its step grows with the number of clients",
    },
)
@by_questions
@dataclass(frozen=True)
class olga:
    """Accelerated epochs (see `fedopt.similarity.epochs`) within which all clients send a compressed difference.

        e = mean_m Q(∇f_m(x) - ∇f_1(x) - ∇f_m(w) + ∇f_1(w)),  E Q(v) = v, E‖Q(v)‖² <= ω ‖v‖²
        N ~ Geom(p), p = 1/ω;  θ = min{√(p M) / (8 δ √ω), 1/(2δ)}

    Epochs begin and end with whole gradients. The server says ∇f_1(x) - ∇f_1(w) with x. With ω of the order of √M,
    O~([M^(-1/4) + ω^(-1/2)] √(δ/μ)) of transmission time.

    c: 8 of the formula. omega: ω; None: of the codec, one more than its relative error.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a
        power iteration over the clients. theta, probability: in place of the formulas. prox: how the server solves its
        subproblem. What is compressed is [compression]'s vector `difference`.

    Differences from the paper: none known in the steps; an attack or a rule acts on the differences as they arrive.
    """

    aggregator: Rule
    server: Optimizer
    codec: Codec | None = None
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    c: Positive = 8.0
    omega: Annotated[float, pydantic.Field(ge=1)] | None = None
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
        omega = self.omega if self.omega is not None else 1.0 + promised(self.codec, setting)
        if self.codec is not None and self.codec.kind not in ("exact", "unbiased"):
            raise ConfigError(
                "compression.name", f"an unbiased codec is needed, '{self.codec.name}' is none; see ef_olga"
            )
        p, delta = self.probability or 1.0 / omega, setting.constants["delta"]
        theta = self.theta or min(math.sqrt(p * setting.clients / omega) / (self.c * delta), 0.5 / delta)
        return compressed(setting, p, theta, 4.0, closing="gradient")
