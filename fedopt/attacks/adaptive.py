"""An attack on the rule at hand: try a family of vectors on the server's own step, send the worst."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.attacks.min_max import Perturbation, direction, gram, sq_between
from fedopt.attacks.optimal_ipm import Outcome
from fedopt.registry import declare

Directions = Annotated[tuple[Perturbation, ...], pydantic.Field(min_length=1)]
Magnitudes = Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]


def pushes(honest: Tensor, mean: Tensor, kinds: Directions) -> list[Tensor]:
    """The perturbations `[d]`, each as long as the largest distance between honest rows, without those that are 0.

    Where the rows are all alike, they are as long as the mean.
    """
    h, along = honest.shape[0], [direction(honest, mean, kind) for kind in kinds]
    products = gram(honest, mean, mean, *along)
    widest, sq_length = float(sq_between(products[:h, :h]).max()), float(products[h, h])
    # rows that are all alike are so up to rounding of the mean
    size = math.sqrt(widest if widest > 1e-24 * sq_length else sq_length)
    squares = products.diagonal()[h + 1 :].tolist()
    return [size / math.sqrt(square) * vector for vector, square in zip(along, squares, strict=True) if square > 0.0]


@declare(
    reference="Shejwalkar, Houmansadr 2021, 'Manipulating the Byzantine: Optimizing Model Poisoning Attacks and"
    " Defenses for Federated Learning', in the spirit of its attacks on a known rule",
    knowledge="omniscient",
    examples=({}, {"directions": ("unit",), "magnitudes": (1.0, 10.0), "refinements": 0}),
)
def adaptive(
    honest: Tensor,
    *,
    b: int,
    outcome: Outcome,
    directions: Directions = ("std", "unit", "sign"),
    magnitudes: Magnitudes = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0),
    refinements: Annotated[int, pydantic.Field(ge=0)] = 6,
) -> Tensor:
    """All attackers send that one of some vectors under which the server moves least along the honest mean.

        sent = argmin_v ⟨outcome(v), μ⟩    over  v = μ  and  v = μ + magnitude · D p / ‖p‖

        p = -σ ("std"),    -μ ("unit")    or    -sign(μ) ("sign"),    D = max_ij ‖honest_i - honest_j‖

    μ and σ are mean and standard deviation of each coordinate over the h honest updates; D is ‖μ‖ where these are all
    alike. A magnitude of about 1 is what `min_max` sends. Many rules follow the attackers up to some magnitude and drop
    them from there on, so the interval between the best magnitude and the next larger one is then halved a few times.

    The server's aggregation runs 1 + |directions| · |magnitudes| + refinements times in each exchange.

    honest: `[h, d]`.
    outcome: `sent [b, d] -> [d]`, what the server's model would move by.
    directions, magnitudes: the family; of vectors that do equally well the first is sent.
    refinements: number of halvings.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: it maximises ‖outcome - μ‖ over γ for one p, with an objective written for each rule;
    here one objective goes through the server itself, and p is searched as well.
    """
    mean = honest_mean(honest, b, "adaptive")
    towards = mean.to(torch.float64)

    def score(vector: Tensor) -> float:
        along = float(outcome(vector.expand(b, -1)).to(torch.float64) @ towards)
        return along if math.isfinite(along) else math.inf

    best, least = mean, score(mean)
    edge: tuple[Tensor, float, float] | None = None
    rising = sorted(magnitudes)
    for push in pushes(honest, mean, directions):
        for magnitude, larger in zip(rising, [*rising[1:], rising[-1]], strict=True):
            vector = mean + magnitude * push
            reached = score(vector)
            if reached < least:
                best, least, edge = vector, reached, (push, magnitude, larger)
    if edge is not None and edge[1] < edge[2]:
        push, low, high = edge
        for _ in range(refinements):
            middle = (low + high) / 2.0
            vector = mean + middle * push
            reached = score(vector)
            if reached < least:
                best, least, low = vector, reached, middle
            else:
                high = middle
    return best.expand(b, -1).clone()
