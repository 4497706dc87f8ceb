"""Epochs within which one of two groups is asked at a time."""

from __future__ import annotations

import math

from torch import Tensor

from fedopt import keys
from fedopt.similarity.asking import Answer, Question, Setting
from fedopt.similarity.epochs import Epoch, Estimator


def either(
    setting: Setting, c: float, probability: float | None, theta: float | None, coupling: float | None
) -> Estimator:
    """e = [P_f(x) - P_f(w)]/p with probability p, else [P_g(x) - P_g(w)]/(1 - p).

    p = q = δ_f²/(δ_f² + δ_g²) and θ = min{√q/(c D), 1/(2(δ_f + δ_g))}, D² = δ_f²/p + δ_g²/(1 - p), unless given.

    Raises ConfigError where there are no two groups.
    """
    setting.need_two()
    f, g = setting.constants["delta_f"], setting.constants["delta_g"]
    p = probability if probability is not None else f**2 / (f**2 + g**2)
    spread = math.sqrt(f**2 / p + g**2 / (1.0 - p))
    if theta is None:
        theta = min(math.sqrt(p) / (c * spread), 0.5 / (f + g))

    def ask(x: Tensor, w: Tensor, at_w: Tensor, key: Tensor) -> Question:
        return Question("f" if float(keys.uniform(keys.fold(key, "group"), 1)[0]) < p else "g", x)

    def estimate(asked: Question, own: Epoch, answer: Answer) -> Tensor:
        at_w = own.at_w[setting.parts.index(asked.part)]
        change = setting.difference(asked.part, asked.point, answer) - at_w
        return change / (p if asked.part == "f" else 1.0 - p)

    return Estimator(p, theta, ask, estimate, coupling=coupling)
