"""Client-level differential privacy: a client's part is bounded, noise covers it, and what is spent is counted.

`private` puts clipping and Gaussian noise before a linear rule. `epsilon` counts what rounds of it spend, `calibrated`
finds the noise that keeps within a budget. Two federations are neighbours where one client is replaced by any other, so
that a sum of rows no longer than C changes by 2C at the most.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import ConfigError
from fedopt.types import Info, Rule

SENSITIVITY = 2.0
"""How far the sum of clipped rows moves, in units of C, when one client is replaced by another."""

BLOCK = 16
"""Rows that are summed in float64 at a time."""

Sample = tuple[int, int]
"""Clients in all, and how many of them are drawn uniformly without replacement in a round."""


class Adaptive(NamedTuple):
    """The clipping norm follows a quantile of the norms of the clients' rows."""

    quantile: float
    """γ, the share of clients that is not to be clipped."""
    lr: float
    """η, the step of the logarithm of the norm."""
    count_noise: float
    """σ, the standard deviation of the noise on the number of clients that were not clipped."""


class Private(NamedTuple):
    """State of a private rule."""

    rule: Any
    """Of the rule behind it."""
    clip: float
    """C of the next round."""
    rounds: int
    """Rounds in which noise was added."""


def private(
    rule: Rule,
    *,
    noise_multiplier: float,
    clip: float,
    spent: Callable[[int], float],
    adaptive: Adaptive | None = None,
    where: str = "aggregator.name",
) -> Rule:
    """The rule on the noisy mean of clipped rows.

        yᵢ = xᵢ min(1, C / ‖xᵢ‖),    ȳ = (Σᵢ yᵢ + N(0, (z C)² I)) / m,    delta = rule(ȳ)

    m is the number of clients that were asked: who was rejected adds nothing and changes neither the noise nor the
    divisor, and a round in which all were is a round of noise. Clients count alike, whatever their samples. The rule is
    handed ȳ as one row of weight m, as the mean of a linear rule may stand for the rows, so all that it does with ȳ
    follows from what was released.

    noise_multiplier: z; with `adaptive` that of deltas and counts together, of which the deltas get the larger
        z_Δ = (z⁻² - (2σ)⁻²)^(-1/2) (Andrew, Thakkar, McMahan, Ramaswamy 2021, 'Differentially Private Learning with
        Adaptive Clipping', theorem 1 and algorithm 1):

            b = (#{‖xᵢ‖ <= C} + N(0, σ²)) / m,    C ← C exp(-η (b - γ))

    clip: C, or with `adaptive` the first one.
    spent: rounds -> ε, for the record.
    where: config path of the rule, for messages.

    Raises ConfigError for a rule that is not linear or asks whose a row is, and for counts with too little noise.

    Differences from the paper: a client that was rejected stands in b as γ, so that it does not move C.
    """
    if rule.scope != "linear":
        raise ConfigError(
            where,
            f"[privacy] bounds what one client adds to a mean; '{rule.name}' is no linear rule of the rows, so what one"
            " client changes there has no such bound; take a linear rule, as mean, or remove [privacy]",
        )
    if "clients" in rule.needs:
        raise ConfigError(where, f"'{rule.name}' asks whose each row is; with [privacy] it is told of their sum alone")
    scale = noise_multiplier if adaptive is None else _for_rows(noise_multiplier, adaptive.count_noise)

    def init(n: int) -> Private:
        return Private(rule.init(n), float(clip), 0)

    def apply(
        updates: Tensor, state: Private, *, asked: int, key: Tensor, **offers: Any
    ) -> tuple[Tensor, Private, Info]:
        norms = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)
        over = norms > state.clip
        total = _weighted_sum(updates, torch.where(over, state.clip / norms, 1.0))
        noise = keys.normal(keys.fold(key, "noise"), updates.shape[1], dtype=torch.float64)
        mean = ((total + scale * state.clip * noise) / asked).to(updates.dtype)
        weight = torch.full((1,), float(asked), dtype=updates.dtype)
        rest = {name: value for name, value in offers.items() if name not in ("weights", "clients")}
        delta, inner, info = rule.apply(
            mean[None], state.rule, weights=weight, key=keys.fold(key, "rule"), asked=asked, **rest
        )
        clipped, accepted = int(over.sum()), updates.shape[0]
        after = Private(inner, state.clip, state.rounds + 1)
        if adaptive is not None:
            error = float(keys.normal(keys.fold(key, "count"), 1, dtype=torch.float64)) * adaptive.count_noise
            counted = accepted - clipped + adaptive.quantile * (asked - accepted) + error
            after = after._replace(clip=state.clip * math.exp(-adaptive.lr * (counted / asked - adaptive.quantile)))
        told = {
            "clip": state.clip,
            "clipped_share": clipped / max(accepted, 1),
            "noise_std": scale * state.clip / asked,
            "epsilon": spent(after.rounds),
        }
        return delta, after, {**info, **told}

    needs = (rule.needs - {"weights"}) | {"asked", "key"}
    return Rule(f"private {rule.name}", "vector", needs, lambda n: rule.admits(1), init, apply)


def _for_rows(noise_multiplier: float, count_noise: float) -> float:
    """z_Δ, so that rows with z_Δ and counts with σ together are as private as rows alone with z."""
    if 2.0 * count_noise <= noise_multiplier:
        raise ConfigError(
            "privacy.adaptive.count_noise",
            f"more than half of the noise multiplier {noise_multiplier:.6g} is needed, {count_noise:.6g} was given: the"
            " counts alone would spend all that there is; raise it",
        )
    return float((noise_multiplier**-2 - (2.0 * count_noise) ** -2) ** -0.5)


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """Σᵢ wᵢ xᵢ in float64: in float32, the factor of a very long row is rounded so far that it stays longer than C."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for some, part in zip(weights.split(BLOCK), rows.split(BLOCK), strict=True):
        total += some @ part.to(torch.float64)
    return total


def epsilon(noise_multiplier: float, rounds: int, delta: float, sample: Sample | None = None) -> float:
    """ε at `delta` of so many rounds whose noise has the standard deviation `noise_multiplier` times C.

    By the Rényi divergences of the package dp-accounting: of the Gaussian mechanism, and where cohorts are drawn, of
    the sampled one (Wang, Balle, Kasiviswanathan 2019, 'Subsampled Rényi Differential Privacy and Analytical Moments
    Accountant', theorem 27); at every order the smaller one holds.

    sample: how cohorts are drawn; None counts every client in every round.

    Raises ConfigError where the package is not installed.
    """
    if rounds == 0:
        return 0.0
    _, rdp = _library()
    orders, each = _divergences(noise_multiplier, sample)
    return float(rdp.compute_epsilon(orders, rounds * each, delta)[0])


def calibrated(target: float, rounds: int, delta: float, sample: Sample | None = None) -> float:
    """The smallest noise multiplier, to six digits, with which so many rounds spend no more than `target` at `delta`.

    Raises ConfigError where none up to a million does.
    """
    from scipy.optimize import brentq

    def over(logarithm: float) -> float:
        return epsilon(math.exp(logarithm), rounds, delta, sample) - target

    low = high = 0.0
    while over(high) > 0:
        high += 1.0
        if high > math.log(1e6):
            raise ConfigError(
                "privacy.target_epsilon", f"no noise keeps {rounds} rounds within {target:g} at delta = {delta:.3g}"
            )
    low = high - 1.0
    while over(low) <= 0 and low > math.log(1e-3):
        low -= 1.0
    if over(low) <= 0:
        return math.exp(low)
    found = math.exp(brentq(over, low, high, xtol=1e-7))
    while epsilon(found, rounds, delta, sample) > target:
        found *= 1.0 + 1e-7
    return found


@functools.lru_cache(maxsize=64)
def _divergences(noise_multiplier: float, sample: Sample | None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Orders, and the Rényi divergence that one round spends at each."""
    library, rdp = _library()

    def spends(event: Any, orders: list[float] | None = None) -> Any:
        relation = library.NeighboringRelation.REPLACE_ONE
        return rdp.RdpAccountant(orders, relation).compose(event)

    def everybody(multiplier: float) -> Any:
        return library.GaussianDpEvent(multiplier)

    def drawn(clients: int, cohort: int, multiplier: float) -> Any:
        return library.SampledWithoutReplacementDpEvent(clients, cohort, everybody(multiplier))

    def relative(whole: Any) -> float:
        # The library may take a multiplier relative to the sensitivity, 2C here, or to C, which it then doubles by
        # itself. The divergence of order 2 for a multiplier of 1 and without sampling, (sensitivity / noise)², tells.
        return noise_multiplier * math.sqrt(float(spends(whole, [2.0]).rdp[0])) / SENSITIVITY

    found = spends(everybody(relative(everybody(1.0))))
    orders, each = found.orders, found.rdp
    if sample is not None:
        each = np.minimum(each, spends(drawn(*sample, relative(drawn(1, 1, 1.0)))).rdp)
    return orders, each


def _library() -> tuple[Any, Any]:
    """dp-accounting and its Rényi accountant."""
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise ConfigError(
            "privacy",
            f"epsilon is counted by the package dp-accounting ({error}); install it with pip install 'fedopt[privacy]',"
            " or remove [privacy]",
        ) from error
    return dp_accounting, rdp
