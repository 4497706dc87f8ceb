"""Adaptive warm-up: a learning rate that rises as the loss falls, then a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import Inner, asks, first_step, within
from fedopt.registry import declare
from fedopt.types import Named, State

Positive = Annotated[float, pydantic.Field(gt=0)]
Norm = Literal["spectral", "max_entry", "frobenius"]

GRID = 500
"""Values of Δ* that are tried, evenly from `MARGIN` to Δ_0 - `MARGIN`."""
MARGIN = 0.01
POINTS = 6001
"""Of the trapezoid rule over [0, Δ_0]."""
TABLE = np.geomspace(0.05, 50.0, 96)
"""Values of Δ_0 for which Δ* is found in advance; between them it is interpolated."""


def rate(gap: Tensor, first: Tensor, star: Tensor, div: float) -> Tensor:
    """η(Δ) / η_max = 1 / (1 + (div - 1) (Δ_0/Δ) ((Δ - Δ*) / (Δ_0 - Δ*))²); 1/div at Δ_0, 1 with slope 0 at Δ*."""
    ahead = (gap - star) / (first - star)
    return 1.0 / (1.0 + (div - 1.0) * (first / gap) * ahead**2)


def distance(star: float, first: float, div: float, weight: float) -> float:
    """J(Δ*) = (1/Δ_0) ∫ w (η(Δ) - T(Δ))² dΔ over [0, Δ_0] for η_max = 1, w = exp(-(weight/2) (Δ - Δ*)²).

    T is half a cosine from 0 to 1 on [0, Δ*], and a straight line from 1 to 1/div on [Δ*, Δ_0].
    """
    gap = np.linspace(0.0, first, POINTS)[1:]  # η and T are 0 at 0
    eta = 1.0 / (1.0 + (div - 1.0) * (first / gap) * ((gap - star) / (first - star)) ** 2)
    line = 1.0 + (1.0 / div - 1.0) * (gap - star) / (first - star)
    target = np.where(gap <= star, 0.5 * (1.0 - np.cos(math.pi * gap / star)), line)
    integrand = np.exp(-0.5 * weight * (gap - star) ** 2) * (eta - target) ** 2
    return float(np.trapezoid(np.concatenate([[0.0], integrand]), dx=first / (POINTS - 1)) / first)


def best_star(first: float, div: float, weight: float) -> float:
    """Δ* of the least J on the grid.

    Raises ValueError where the loss is not far enough above its target for a grid.
    """
    if not first > 2.0 * MARGIN:
        raise ValueError(f"the first loss has to be more than {2 * MARGIN} above the target; it is {first:.4g} above")
    grid = np.linspace(MARGIN, first - MARGIN, GRID)
    return float(min(grid, key=lambda star: distance(star, first, div, weight)))


@lru_cache(maxsize=32)
def _table(div: float, weight: float) -> tuple[float, ...]:
    """Δ* / Δ_0 over `TABLE`, to a thousandth."""
    found = []
    for first in TABLE:
        low, high = MARGIN / first, 1.0 - MARGIN / first
        for _ in range(3):  # a grid of ever smaller cells
            grid = np.linspace(low, high, 24)
            k = int(np.argmin([distance(share * first, first, div, weight) for share in grid]))
            low, high = grid[max(k - 1, 0)], grid[min(k + 1, 23)]
        found.append(0.5 * (low + high))
    return tuple(found)


def kappa(norm: Norm, shapes: list[tuple[int, ...]]) -> float:
    """sup ‖v‖_* / ‖v‖, ‖v‖ the largest norm of a matrix: Σ min(m, n), Σ m n, or the number of matrices."""
    sides = [(shape[0], math.prod(shape[1:])) for shape in shapes if len(shape) >= 2]
    return float(sum({"spectral": min(m, n), "max_entry": m * n, "frobenius": 1}[norm] for m, n in sides))


@declare(
    reference="Riabinin et al. 2026, Where Does Warm-Up Come From? Adaptive Scheduling for Norm-Constrained "
    "Optimizers, "
    "arXiv 2602.05813, algorithm 1",
    examples=({"of": {"name": "sgd", "lr": 0.1}, "target": 0.1, "steps": 100},),
)
@dataclass(frozen=True)
class warmup:
    """Another optimizer, whose learning rate follows the loss Δ_t above a target, and then a cosine.

        η_t = η_max / (1 + (div - 1) (Δ_0/Δ_t) ((Δ_t - Δ*) / (Δ_0 - Δ*))²)          until Δ_t <= Δ* for the first time
        η_t = η_max (final + (1 - final) (1 + cos(π (t - t*) / (steps - t*))) / 2)   from then on, t* that step

    Δ* is where η is nearest to a straight line and half a cosine (`distance`); the first step is η_max / div.

    of: the optimizer, its lr is η_max. target: the loss at which the run is expected to end. steps: of the run.
    div: 100 for spectral and sign steps, 5 for Frobenius. final: end of the cosine.
    norm: in which the optimizer's steps are of constant length, for κ. kappa: κ; None: from the shapes of all matrices.
    sigma: σ_F; the weight of `distance` is σ_F κ. delta_star: Δ* in place of the search. ema: of the loss, 0 for none.

    *Differences from the release*: the first step knows the loss; Δ* is the exact minimiser (its integrals have an
    absolute tolerance above their values), here from a table that is interpolated. A first loss that is not above the
    target begins with the cosine.
    """

    of: Inner
    target: float
    steps: Annotated[int, pydantic.Field(ge=1)]
    div: Annotated[float, pydantic.Field(gt=1)] = 100.0
    final: Annotated[float, pydantic.Field(ge=0, le=1)] = 1e-4
    norm: Norm = "spectral"
    kappa: Positive | None = None
    sigma: Positive = 1e-3
    delta_star: Positive | None = None
    ema: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0

    @property
    def asks(self) -> frozenset[str]:
        """The loss, and what the optimizer itself asks for."""
        return frozenset({"value"}) | asks(self.of)

    def init(self, params: Named) -> State:
        """`of`: the optimizer's; `step`, `first` = Δ_0, `loss` (its mean), `star` = Δ*, `switched` = t*, -1 before."""
        zero = first_step(params)
        numbers = {"step": zero, "first": zero, "loss": zero, "star": zero, "switched": zero - 1}
        return {**numbers, "of": self.of.init(params)}

    def behind(self, state: State, params: Named) -> Named:
        """Where the optimizer wants a second gradient."""
        inner: Any = self.of
        point: Named = inner.behind(state["of"], params)
        return point

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, value: Tensor, **offers: Any
    ) -> tuple[Named, State]:
        """One step; value: the loss where the gradient is. `hyper` holds those of `of`."""
        step, begins = state["step"], state["step"] == 0
        loss = torch.where(
            begins, value.to(step.dtype), self.ema * state["loss"] + (1 - self.ema) * value.to(step.dtype)
        )
        gap = loss - self.target
        first = torch.where(begins, gap, state["first"])
        star = torch.where(begins, self._star(gap, params), state["star"])
        over = (state["switched"] < 0) & ((gap <= star) | (gap <= 0) | (first <= 2.0 * MARGIN))
        switched = torch.where(over, step, state["switched"])
        above = torch.where(gap > 0, gap, torch.ones_like(gap))
        apart = torch.where(first > star, first, star + 1.0)
        rising = rate(above, apart, star, self.div)
        whole = (self.steps - switched).clamp(min=1.0)
        part = ((step - switched) / whole).clamp(0.0, 1.0)
        falling = self.final + (1.0 - self.final) * 0.5 * (1.0 + torch.cos(math.pi * part))
        factor = torch.where(switched >= 0, falling, rising)
        numbers = within(hyper, "of")
        numbers = {**numbers, "lr": numbers["lr"] * factor.to(numbers["lr"].dtype)}
        given = {"value": value, **offers} if "value" in asks(self.of) else offers
        new, inner = self.of.update(grads, state["of"], params, numbers, **given)
        kept = {"step": step + 1, "first": first, "loss": loss, "star": star, "switched": switched}
        return new, {**kept, "of": inner}

    def _star(self, first: Tensor, params: Named) -> Tensor:
        if self.delta_star is not None:
            return torch.full_like(first, self.delta_star)
        constant = self.kappa or kappa(self.norm, [tuple(x.shape) for x in params.values()])
        table = torch.tensor(_table(self.div, self.sigma * constant), dtype=first.dtype, device=first.device)
        low, high = math.log(TABLE[0]), math.log(TABLE[-1])
        at = (first.clamp(TABLE[0], TABLE[-1]).log() - low) / (high - low) * (len(TABLE) - 1)
        below = at.floor().clamp(0, len(TABLE) - 2)
        one, other = (table.index_select(0, (below + k).long().reshape(1))[0] for k in (0, 1))
        return first * (one + (at - below) * (other - one))
