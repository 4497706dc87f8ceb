"""ASEG: accelerated sliding with some of the clients, who may add noise to what they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
from torch import Tensor

from fedopt import keys
from fedopt.registry import ConfigError, declare
from fedopt.similarity.asking import Answer, Constant, Question, Setting, Turn, at_home, by_questions
from fedopt.similarity.home import Count, NotNegative, Positive, Solving
from fedopt.similarity.sliding import Sliding, sliding
from fedopt.types import Batches, Info, Optimizer, Rule


class Pair(NamedTuple):
    """Between the two questions of an iteration."""

    x: Tensor
    x_f: Tensor
    middle: bool


@declare(
    reference="Bylinkin, Degtyarev, Beznosikov 2024, 'Accelerated Stochastic ExtraGradient: Mixing Hessian and "
    "Gradient Similarity to Reduce Communication in Distributed and Federated Learning', arXiv "
    "2409.14280, algorithm 1",
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class aseg:
    """`aeg` in which both gradients of an iteration are asked of `take` clients, drawn anew; each adds N(0, noise² I).

    Comes to a neighbourhood of the solution, which is proportional to noise² and grows as fewer are taken.

    take: B; None: everybody. noise: σ, of numbers that follow from the run's seed: it measures what noise does, and
    protects
        nobody. factor: of θ and η.
    l2, mu, delta, prox: as for `aeg`.

    Differences from the paper: the subproblem is solved as in `aeg`.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    take: Count | None = None
    noise: NotNegative = 0.0
    factor: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return at_home(self.delta, False)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        if self.take is not None and self.take > setting.clients:
            raise ConfigError("strategy.take", f"at most {setting.clients} clients are there; {self.take} given")
        return self._ask(setting, Pair(x, x, False), key)

    def proceed(self, setting: Setting, own: Pair, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        numbers = self._numbers(setting)
        if not own.middle:
            x_g = numbers.ahead(own.x, own.x_f)
            found = setting.home.prox(setting.differences(x_g, answers), x_g, numbers.rho, key)
            return self._ask(setting, own._replace(x_f=found.point, middle=True), key, {"server_steps": found.steps})
        slope = setting.differences(own.x_f, answers) + setting.home.total(own.x_f)
        return self._ask(setting, own._replace(x=numbers.after(own.x, own.x_f, slope), middle=False), key)

    def _ask(self, setting: Setting, own: Pair, key: Tensor, info: Info = {}) -> Turn:  # noqa: B006 - read-only
        point = own.x_f if own.middle else self._numbers(setting).ahead(own.x, own.x_f)
        pool = setting.problem.pool
        some = pool[:0]
        if self.take is not None and self.take < pool.numel():
            some = pool[keys.sample(keys.fold(key, "clients"), pool.numel(), self.take)].sort().values
        return Turn(own, (Question("f", point, clients=some),), own.x_f, info)

    def _numbers(self, setting: Setting) -> Sliding:
        return sliding(setting.mu, setting.delta, self.factor)
