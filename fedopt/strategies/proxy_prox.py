"""Proximal steps on the server's own part with the difference at the last point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, at_home, by_questions
from fedopt.similarity.home import NotNegative, Positive, Share, Solving
from fedopt.types import Batches, Optimizer, Rule


class At(NamedTuple):
    """State."""

    x: Tensor


@declare(
    reference="Woodworth, Mishchenko, Bach 2023, 'Two Losses Are Better Than One: Faster Optimization Using a "
    "Cheaper Proxy', arXiv 2302.03542",
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class proxy_prox:
    """x <- argmin_v ⟨∇p(x), v - x⟩ + ‖v - x‖²/(2θ) + h_1(v),  θ = factor/δ;  one round with everybody per iteration.

    `aeg` without acceleration: O(δ/μ log 1/ε) rounds.

    l2, mu, delta, rare, rare_classes, prox: as for `aeg`.

    Differences from the paper: the deterministic method, with the step of a δ-smooth difference.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    factor: Positive = 1.0
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return at_home(self.delta, bool(self.rare or self.rare_classes))

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return Turn(At(x), setting.everywhere(x), x)

    def proceed(self, setting: Setting, own: At, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        rho = setting.delta / self.factor
        found = setting.home.prox(setting.differences(own.x, answers), own.x, rho, key)
        return Turn(At(found.point), setting.everywhere(found.point), found.point, {"server_steps": found.steps})
