"""S-DANE: DANE whose centre moves by a step of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import ConfigError, declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.home import Count, NotNegative, Positive, Solving
from fedopt.similarity.walks import Walk, anchored, moved, stepped
from fedopt.types import Batches, Optimizer, Rule


class Stabilised(NamedTuple):
    """State."""

    walk: Walk
    x: Tensor
    """What is published."""
    some: Tensor
    """Who takes part in this iteration; empty: everybody."""


@declare(
    reference="Jiang, Rodomanov, Stich 2024, 'Stabilized Proximal-Point Methods for Federated Optimization', arXiv "
    "2407.07084, algorithm 1",
    examples=({"l2": 0.5, "delta": 2.0, "passes": 5},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class s_dane:
    """v is where gradients are asked for, x what is published; two rounds per iteration, with a set S of clients.

        x_m = argmin f_m(u) + ⟨∇f(v) - ∇f_m(v), u⟩ + (ρ/2) ‖u - v‖²;  x = mean x_m
        v <- argmin ⟨mean ∇f_m(x_m), u⟩ + (μ/2) mean ‖u - x_m‖² + (ρ/2) ‖u - v‖²

    l2: λ of (λ/2)‖x‖², part of every f_m. mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a
        power iteration over the clients. rho: weight of the proximal term; None: δ.
    passes: of a client over all its samples to find its proximal point, each a step of conjugate gradients (exact for
        quadratics after d of them); 0: one step of gradient descent with `lr` for each of its batches, for networks.

    take: S, how many clients an iteration is made with; None: everybody. Then, with subproblems that are solved
        exactly, v = x, and this is DANE.

    Differences from the paper: none known.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    rho: Positive | None = None
    take: Count | None = None
    passes: Annotated[int, pydantic.Field(ge=0)] = 30
    lr: Positive = 0.1
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        if self.take is not None and self.take > setting.clients:
            raise ConfigError("strategy.take", f"at most {setting.clients} clients are there; {self.take} given")
        return self._anchored(setting, Stabilised(Walk("anchor", x, x, x), x, x[:0].long()), key)

    def proceed(self, setting: Setting, own: Stabilised, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        rho, mu, v = self.rho or setting.constants["delta"], setting.mu, own.walk.x
        walk = moved(own.walk, answers[0])
        if walk.phase == "anchor":
            turn = stepped(
                setting,
                walk,
                key,
                rho,
                0.0,
                walk.x,
                self.lr,
                passes=self.passes,
                program="stabilised",
                some=own.some,
            )
            return turn._replace(own=own._replace(walk=turn.own), params=own.x)
        x, slope = walk.x, -answers[0].beside
        after = (rho * v + mu * x - slope) / (rho + mu)
        return self._anchored(setting, own._replace(walk=walk._replace(x=after, w=after), x=x), key)

    def _anchored(self, setting: Setting, own: Stabilised, key: Tensor) -> Turn:
        pool, some = setting.problem.pool, setting.nobody
        if self.take is not None and self.take < pool.numel():
            some = pool[keys.sample(keys.fold(key, "clients"), pool.numel(), self.take)].sort().values
        turn = anchored(own.walk, some)
        return turn._replace(own=own._replace(walk=turn.own, some=some), params=own.x)
