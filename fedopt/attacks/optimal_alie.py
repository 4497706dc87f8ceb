"""A Little Is Enough with the number of deviations that moves the server the furthest."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.attacks.min_max import deviation
from fedopt.attacks.optimal_ipm import Evaluations, Outcome, Ratio, Start, distance, line_search
from fedopt.registry import declare


@declare(
    reference="Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan 2023, 'Fixing by Mixing: A Recipe for Optimal"
    " Byzantine ML under Heterogeneity', experiments; the search as in ByzFL",
    knowledge="omniscient",
    examples=({}, {"evaluations": 8, "most": 3.0, "direction": -1}),
)
def optimal_alie(
    honest: Tensor,
    *,
    b: int,
    outcome: Outcome,
    direction: Literal[1, -1] = 1,
    start: Start = 0.0,
    step: Positive = 10.0,
    ratio: Ratio = 0.8,
    evaluations: Evaluations = 20,
    most: Positive | None = None,
) -> Tensor:
    """`alie` with z by a line search over what the server would do.

        sent = μ + direction · z* σ,    z* ≈ argmax ‖outcome(μ + direction · z σ) - μ‖

    μ and σ are mean and standard deviation (divisor h) of each coordinate over the h honest updates. It runs the
    server's aggregation `evaluations` times in each exchange.

    honest: `[h, d]`.
    outcome: `sent [b, d] -> [d]`, what the server's model would move by.
    direction: 1 or -1, the side of the mean.
    start, step, ratio, evaluations, most: as in `optimal_ipm`, for z.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from ByzFL: as in `optimal_ipm`; the divisor of σ is h as in `alie`, h - 1 there, so that z and the
    steps between its values are longer here by √(h / (h - 1)) for the same vectors.
    """
    mean = honest_mean(honest, b, "optimal_alie")
    sigma = direction * deviation(honest, mean)

    def sent(z: float) -> Tensor:
        return (mean + z * sigma).expand(b, -1)

    z = line_search(
        lambda z: distance(outcome, sent(z), mean),
        start=start,
        step=step,
        ratio=ratio,
        evaluations=evaluations,
        most=most,
    )
    return sent(z).clone()
