"""Catalyzed SVRP: proximal steps of single clients, accelerated from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.walks import Walk, anchored, moved, stepped
from fedopt.types import Batches, Optimizer, Rule


class Catalyst(NamedTuple):
    """State of both loops."""

    walk: Walk
    x: Tensor
    """Of the last outer step."""
    y: Tensor
    left: int
    """Inner steps left."""
    outer: int


@declare(
    reference="Khaled, Jin 2023, 'Faster Federated Optimization under Second-order Similarity', arXiv 2209.02257, "
    "algorithm 3",
    examples=({"l2": 0.5, "delta": 2.0, "passes": 5},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class catalyzed_svrp:
    """SVRP on f(x) + (γ/2) ‖x - y_(t-1)‖² for n_in steps, from the last point; then y_t = x_t + b (x_t - x_(t-1)).

        γ = max{0, δ/√M - μ}, q = μ/(μ + γ), b = (1 - √q)/(1 + √q);  η = factor (μ + γ)/δ²
        n_in = ⌈k (M + δ²/(μ + γ)²)⌉:  O~(M + M^(3/4) √(δ/μ)) messages

    l2, mu, delta, eta, probability: as for `svrp`. gamma: γ in place of the formula. k: of n_in.
    passes: of a client over all its samples to find its proximal point, each a step of conjugate gradients (exact for
        quadratics after d of them); 0: one step of gradient descent with `lr` for each of its batches, for networks.

    Differences from the paper: a fixed number of inner steps, with w renewed at the start of each run of them.
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
    gamma: NotNegative | None = None
    k: Positive = 1.0
    passes: Annotated[int, pydantic.Field(ge=0)] = 30
    lr: Positive = 0.1
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return self._outer(setting, Catalyst(Walk("anchor", x, x, x), x, x, 0, 0))

    def proceed(self, setting: Setting, own: Catalyst, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        walk = moved(own.walk, answers[0])
        if walk.phase == "step":
            own = own._replace(left=own.left - 1)
            if own.left == 0:
                gamma = self._gamma(setting)
                root = math.sqrt(setting.mu / (setting.mu + gamma))
                y = walk.x + (1.0 - root) / (1.0 + root) * (walk.x - own.x)
                walk = walk._replace(w=walk.x)
                return self._outer(setting, Catalyst(walk, walk.x, y, 0, own.outer + 1))
            p = self.probability or 1.0 / setting.problem.pool.numel()
            if float(keys.uniform(keys.fold(key, "reference"), 1)[0]) < p:
                return self._with(own, anchored(walk._replace(w=walk.x)))
        gamma, delta = self._gamma(setting), setting.constants["delta"]
        eta = self.eta or self.factor * (setting.mu + gamma) / delta**2
        return self._with(own, stepped(setting, walk, key, 1.0 / eta, gamma, own.y, self.lr, passes=self.passes))

    def _outer(self, setting: Setting, own: Catalyst) -> Turn:
        ratio = setting.constants["delta"] / (setting.mu + self._gamma(setting))
        steps = math.ceil(self.k * (setting.problem.pool.numel() + ratio**2))
        turn = anchored(own.walk)
        return self._with(own._replace(left=steps), turn._replace(info={"outer": own.outer}))

    def _with(self, own: Catalyst, turn: Turn) -> Turn:
        return turn._replace(own=own._replace(walk=turn.own), params=own.x)

    def _gamma(self, setting: Setting) -> float:
        if self.gamma is not None:
            return self.gamma
        return max(0.0, setting.constants["delta"] / math.sqrt(setting.problem.pool.numel()) - setting.mu)
