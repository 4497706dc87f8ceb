"""Inner product manipulation with the factor that moves the server the furthest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.registry import declare

Outcome = Callable[[Tensor], Tensor]
Ratio = Annotated[float, pydantic.Field(gt=0.0, lt=1.0)]
Evaluations = Annotated[int, pydantic.Field(ge=1)]
Start = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]


def line_search(
    score: Callable[[float], float], *, start: float, step: float, ratio: float, evaluations: int, most: float | None
) -> float:
    """The best of `evaluations` numbers, tried from `start` upwards, at most `most`.

    Each is the best one so far plus a step. The step doubles while that improves the score; from the first failure on
    it shrinks by `ratio` after every trial.
    """
    limit = math.inf if most is None else most
    best = min(start, limit)
    highest, growing = score(best), True
    for _ in range(evaluations - 1):
        at = min(best + step, limit)
        reached = score(at)
        growing = growing and reached > highest
        if reached > highest:
            best, highest = at, reached
        step *= 2.0 if growing else ratio
    return best


def distance(outcome: Outcome, sent: Tensor, mean: Tensor) -> float:
    """How far from the honest mean the server moves; -∞ where it is no number, so that a search keeps away."""
    gap = float((outcome(sent).to(torch.float64) - mean.to(torch.float64)).norm())
    return gap if math.isfinite(gap) else -math.inf


@declare(
    reference="Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, 'Fixing by Mixing: A Recipe for Optimal"
    " Byzantine ML under Heterogeneity', experiments; the search as in ByzFL",
    knowledge="omniscient",
    examples=({}, {"evaluations": 8, "most": 3.0}),
)
def optimal_ipm(
    honest: Tensor,
    *,
    b: int,
    outcome: Outcome,
    start: Start = 0.0,
    step: Positive = 10.0,
    ratio: Ratio = 0.8,
    evaluations: Evaluations = 20,
    most: Positive | None = None,
) -> Tensor:
    """`ipm` with κ by a line search over what the server would do.

        sent = -κ* μ,    κ* ≈ argmax ‖outcome(-κ μ) - μ‖,    μ = (1/h) Σ honest_i

    It runs the server's aggregation `evaluations` times in each exchange.

    honest: `[h, d]`.
    outcome: `sent [b, d] -> [d]`, what the server's model would move by.
    start, step, ratio, evaluations: κ grows from `start` by doubling steps while that helps, then by steps that shrink
        by `ratio`; see `line_search`.
    most: largest κ that is tried; without it a plain mean lets κ grow as long as there are evaluations.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from ByzFL: the whole of the server's step is searched over, where ByzFL aggregates alone, so with a
    server step size of its own, μ is not what the server would do without attackers; `most` is an addition; a κ under
    which the aggregate is no number is never chosen.
    """
    mean = honest_mean(honest, b, "optimal_ipm")

    def sent(kappa: float) -> Tensor:
        return (-kappa * mean).expand(b, -1)

    kappa = line_search(
        lambda kappa: distance(outcome, sent(kappa), mean),
        start=start,
        step=step,
        ratio=ratio,
        evaluations=evaluations,
        most=most,
    )
    return sent(kappa).clone()
