"""Epochs within which one client is asked at a time."""

from __future__ import annotations

import math

from torch import Tensor

from fedopt import keys
from fedopt.similarity.asking import Answer, Question, Setting
from fedopt.similarity.epochs import Epoch, Estimator


def one_client(setting: Setting, c: float, theta: float | None, coupling: float | None) -> Estimator:
    """e = [∇f_i(x) - ∇f_1(x)] - [∇f_i(w) - ∇f_1(w)], i uniform over the n clients that are there; q = 1/n.

    θ = min{1/(c δ √n), 1/(2δ)} unless given.
    """
    pool = setting.problem.pool
    q, delta = 1.0 / pool.numel(), setting.constants["delta"]
    if theta is None:
        theta = min(math.sqrt(q) / (c * delta), 0.5 / delta)

    def ask(x: Tensor, w: Tensor, at_w: Tensor, key: Tensor) -> Question:
        i = pool[keys.sample(keys.fold(key, "client"), pool.numel(), 1)]
        return Question("f", x, "difference", clients=i, down={"shift": shift(setting, x, w)})

    def estimate(asked: Question, own: Epoch, answer: Answer) -> Tensor:
        return answer.vector

    return Estimator(q, theta, ask, estimate, program="anchor", coupling=coupling)


def shift(setting: Setting, x: Tensor, w: Tensor) -> Tensor:
    """∇f_1(x) - ∇f_1(w), which clients take from their own difference."""
    there: Tensor = setting.home.gradient("f", x) - setting.home.gradient("f", w)
    return there
