"""Min-Sum: no further from all honest updates together than one honest update is."""

from __future__ import annotations

from torch import Tensor

from fedopt.attacks.ipm import Positive, honest_mean
from fedopt.attacks.min_max import Perturbation, pushed
from fedopt.registry import declare


@declare(
    reference="Shejwalkar, Houmansadr 2021, 'Manipulating the Byzantine: Optimizing Model Poisoning Attacks and"
    " Defenses for Federated Learning', Min-Sum",
    knowledge="omniscient",
    examples=({}, {"perturbation": "unit"}, {"perturbation": "sign", "tolerance": 1e-3}),
)
def min_sum(
    honest: Tensor,
    *,
    b: int,
    perturbation: Perturbation = "std",
    start: Positive = 10.0,
    tolerance: Positive = 1e-5,
) -> Tensor:
    """All attackers send the honest mean plus the longest perturbation within the honest sums of squared distances.

        sent = μ + γ p,    γ the largest with  Σ_i ‖sent - honest_i‖² <= max_i Σ_j ‖honest_i - honest_j‖²

    The sum over a mean splits, so γ = max_i ‖honest_i - μ‖ / ‖p‖ in exact arithmetic; the published search is kept.

    honest: `[h, d]`.
    perturbation, start, tolerance: as in `min_max`.
    Returns `[b, d]`, equal rows.
    Raises FedoptError when no client of the exchange is honest.

    Differences from the paper: as in `min_max`.
    """
    mean = honest_mean(honest, b, "min_sum")
    sent = pushed(
        honest, mean, perturbation, lambda to, among: bool(to.sum() <= among.sum(dim=1).max()), start, tolerance
    )
    return sent.expand(b, -1).clone()
