"""Gradient descent with clipped gradients, for heavy-tailed noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


LR = 0.01


class Theory(NamedTuple):
    """What is known of a problem, from which the step and the threshold are had.

    l0, l1: f is (L_0, L_1)-smooth. r0: R_0 >= ‖x_0 - x*‖. sigma, alpha: E ‖noise‖^α <= σ^α, α in (1, 2]. steps: K.
    delta: the probability of failure. constants: `practical`, or `theory`, far smaller.
    """

    l0: Positive
    l1: NotNegative
    r0: Positive
    sigma: NotNegative
    alpha: Annotated[float, pydantic.Field(gt=1, le=2)]
    steps: Annotated[int, pydantic.Field(ge=1)]
    delta: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.01
    constants: Literal["practical", "theory"] = "practical"


def chosen(known: Theory) -> tuple[float, float]:
    """(γ, λ), the step and the threshold; A = ln(4 (K + 1) / δ).

        practical  γ = min{1/(4 L_0), R_0 / (σ K^(1/α) A^((α-1)/α))},                          c_1 = c_2 = 1
        theory     γ = min{1/(80 L_0 A), R_0 / (20 · 27^(1/α) σ (K + 1)^(1/α) A^((α-1)/α))},   c_1 = 40, c_2 = 1
        λ = min{R_0 / (c_1 A), 1 / (c_2 L_1)} / γ

    The published choice was not available: this one has the published rates, and is the one of Sadiev et al. 2023 for
    L_1 = 0.
    """
    a = math.log(4.0 * (known.steps + 1) / known.delta)
    noise = a ** ((known.alpha - 1.0) / known.alpha) * known.sigma
    if known.constants == "practical":
        still, noise, c1 = 1.0 / (4.0 * known.l0), noise * known.steps ** (1.0 / known.alpha), 1.0
    else:
        still, c1 = 1.0 / (80.0 * known.l0 * a), 40.0
        noise *= 20.0 * (27.0 * (known.steps + 1)) ** (1.0 / known.alpha)
    gamma = min(still, known.r0 / noise) if noise > 0 else still
    reach = min(known.r0 / (c1 * a), 1.0 / known.l1) if known.l1 > 0 else known.r0 / (c1 * a)
    return gamma, reach / gamma


@declare(
    reference="Chezhegov, Beznosikov, Horváth, Gorbunov 2025, Convergence of Clipped-SGD for Convex (L0,L1)-Smooth "
    "Optimization with Heavy-Tailed Noise, arXiv 2505.20817; Sadiev et al. 2023, arXiv 2302.00999, for the parameters"
)
@dataclass(frozen=True)
class clip_sgd:
    """x ← x - γ clip(g), clip(g) = min{1, λ/‖g‖} g, the norm over all tensors together.

    lr: γ. threshold: λ; infinite is gradient descent. theory: a table (l0, l1, r0, sigma, alpha, steps, delta,
        constants) in place of both, see `chosen`.
    momentum: μ of u ← μ u + g; 0 keeps no buffer. clip_momentum: u is clipped in place of g.
    weight_decay: decoupled. average: also keeps the mean of x_1, ..., x_t in the state, `average`, which is what
        theory is about.

    Raises ValueError for a step or a threshold given beside `theory`.

    *Differences from the paper*: momentum and decay are additions; the parameters are derived.
    """

    lr: Scalar = LR
    threshold: Scalar = math.inf
    theory: Theory | None = None
    momentum: Scalar = 0.0
    clip_momentum: bool = False
    weight_decay: Scalar = 0.0
    average: bool = False

    def __post_init__(self) -> None:
        """The step and the threshold that theory gives."""
        if self.theory is None:
            return
        found = chosen(self.theory)
        if (self.lr, self.threshold) not in ((LR, math.inf), found):
            raise ValueError("lr and threshold come from theory; leave them out, or leave theory out")
        object.__setattr__(self, "lr", found[0])
        object.__setattr__(self, "threshold", found[1])

    def init(self, params: Named) -> State:
        """`momentum` where there is one; `average` and `step` where it is kept."""
        zeros = {name: torch.zeros_like(x) for name, x in params.items()}
        state: State = {"momentum": zeros} if self.momentum != 0 else {}
        return state | ({"average": zeros, "step": first_step(params)} if self.average else {})

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, threshold, momentum and weight_decay."""
        h, steps, after = at_params(hyper, params), grads, {}
        if not self.clip_momentum:
            steps = clipped(steps, h["threshold"])
        if self.momentum != 0:
            steps = {name: h["momentum"] * u + steps[name] for name, u in state["momentum"].items()}
            after["momentum"] = steps
        if self.clip_momentum:
            steps = clipped(steps, h["threshold"])
        keep = 1 - h["lr"] * h["weight_decay"] if self.weight_decay != 0 else None
        held = params if keep is None else {name: keep * x for name, x in params.items()}
        new = {name: torch.addcmul(x, steps[name], h["lr"], value=-1) for name, x in held.items()}
        if self.average:
            step = state["step"] + 1
            after["average"] = {name: mean + (new[name] - mean) / step for name, mean in state["average"].items()}
            after["step"] = step
        return new, after


def clipped(named: Named, threshold: Tensor) -> Named:
    """Scaled to a norm over all tensors of the threshold at most; as it is where it is no longer."""
    squares = [
        x.float().square().sum() if x.dtype in (torch.float16, torch.bfloat16) else x.square().sum()
        for x in named.values()
    ]
    norm = torch.stack(squares).sum().sqrt()
    share = torch.where(norm > threshold, threshold / norm, torch.ones_like(norm))
    return {name: torch.where(norm > threshold, share.to(x.dtype) * x, x) for name, x in named.items()}
