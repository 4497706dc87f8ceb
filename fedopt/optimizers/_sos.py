"""SOS: a constant step of sign descent, found by runs from the start."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fedopt.types import FedoptError, Named

if TYPE_CHECKING:
    from fedopt.optimizers import Oracle

LARGEST = 1e30
"""No step is tried above it."""


class Searched(NamedTuple):
    """What the search ended with."""

    gamma: float
    params: Named
    """Where the run with this step ended."""
    norm: float
    """Mean ‖g‖₁ of that run."""
    runs: int
    bracket: tuple[float, float]
    """φ(γ) > γ at the first, φ(γ) <= γ at the second."""


class _Run(NamedTuple):
    phi: float
    params: Named
    norm: float


def sos(
    oracle: Oracle, params: Named, steps: int, *, smallest: float = 1e-8, least: float = 1e-12, h: float = 0.0
) -> Searched:
    """Runs of sign descent from `params` with constant steps, until one is within a factor 2 of γ = φ(γ).

        φ(γ) = √(N / D),  N = max(least, max_t Σ_(i<t) γ ⟨g_(i+1), sign g_i⟩),
        D = h + Σ_i ‖g_(i+1) - g_i‖₁ / ‖x_(i+1) - x_i‖_∞

    The step is squared over and over, in units of `smallest`, until φ(γ) <= γ, then bisected by its logarithm: the
    number of runs grows as log log(γ / smallest), each takes `steps` + 1 gradients. Of the two ends the run with the
    smaller mean ‖g‖₁ is returned. A run that leaves the numbers had too large a step.

    oracle: of all data, without noise. Raises FedoptError for arguments out of range, and where no step is too small.

    Medyakov et al. 2025, Sign-SGD via Parameter-Free Optimization, arXiv 2506.03725 (SOS). *Difference*: the published
    procedure was not available; this one is made after Carmon and Hinder 2022, Making SGD Parameter-Free.
    """
    if steps < 1 or not 0 < smallest < 1 or least <= 0 or h < 0:
        raise FedoptError(
            "steps >= 1, 0 < smallest < 1, least > 0 and h >= 0 are needed;"
            f" {steps}, {smallest}, {least} and {h} were given"
        )
    runs = 0

    def run(gamma: float) -> _Run:
        nonlocal runs
        runs += 1
        return _run(oracle, params, steps, gamma, least, h)

    low, high, k = smallest, smallest, 0
    found = {low: run(low)}
    if found[low].phi <= low:
        raise FedoptError(f"a step of smallest = {smallest} is too large already; give a smaller one")
    while found[high].phi > high:
        low, high = high, min(smallest * 2.0 ** (2.0**k), LARGEST)
        if high == low:
            raise FedoptError(f"no step up to {LARGEST:g} is too large: the function has no minimum")
        k += 1
        found[high] = run(high)
    while high > 2.0 * low:
        middle = math.sqrt(low * high)
        found[middle] = run(middle)
        low, high = (low, middle) if found[middle].phi <= middle else (middle, high)
    gamma = min((low, high), key=lambda end: found[end].norm)
    return Searched(gamma, found[gamma].params, found[gamma].norm, runs, (low, high))


def _run(oracle: Oracle, params: Named, steps: int, gamma: float, least: float, h: float) -> _Run:
    x = {name: t.clone() for name, t in params.items()}
    g, _ = oracle(x)
    evidence, most, rough, norms = 0.0, least, h, 0.0
    for _ in range(steps):
        signs = {name: t.sign() for name, t in g.items()}
        norms += _sum(t.abs() for t in g.values()) / steps
        x = {name: t - gamma * signs[name] for name, t in x.items()}
        after, _ = oracle(x)
        evidence += gamma * _sum(after[name] * signs[name] for name in g)
        most = max(most, evidence)
        if any(bool(t.any()) for t in signs.values()):
            rough += _sum((after[name] - t).abs() for name, t in g.items()) / gamma
        g = after
        if not math.isfinite(rough) or not math.isfinite(evidence):
            return _Run(0.0, x, math.inf)
    phi = math.sqrt(most / rough) if rough > 0 else math.inf
    return _Run(phi, x, norms)


def _sum(parts: Iterable[Tensor]) -> float:
    return float(sum(float(part.sum()) for part in parts))
