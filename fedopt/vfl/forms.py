"""Ways to write the coupling z = k Σ_i A_i x_i as a saddle problem, each as the label owner's half of the operator.

With the constraint R = s (k Σ_i A_i x_i - z) and multipliers y, the parties' half is the same for all forms:
F_{x_i} = s k A_iᵀ p + ∇r_i(x_i), where p is what the owner tells them. The forms differ in p and in the owner's part:

    lagrangian    min_{x,z} max_y  l(z) + r(x) + ⟨y, R⟩                             p = y
    augmented     the same + ρ ‖R‖² / 2                                             p = y + ρ R
    dual          min_x max_y  s k ⟨y, A x⟩ - l*(s y) + r(x)                        p = y
    split         min_{x,z_i} max_{y_i}  l(Σ z_i) + r(x) + Σ_i ⟨y_i, s (k A_i x_i - z_i)⟩   p_i = y_i

Reference: "Exploring New Frontiers in Vertical Federated Learning: the Role of Saddle Point Reformulation", 2026, arXiv
2602.15996, section 2 and its reformulations. The formulas of the last three are a reconstruction: the paper's own lines
are not public. All have the same solution x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.types import Named
from fedopt.vfl.owner import Owner


class Form(NamedTuple):
    """The owner's half: its variables `v` by name, the parties' outputs `a`, summed `[m c]` or a row for each."""

    each: bool
    """Whether it needs every party's outputs, and has a multiplier for each."""
    start: Callable[[Tensor], Named]
    """`(a at the first point) -> v`, zeros."""
    say: Callable[[Named, Tensor], Tensor]
    """`(v, a) -> p`"""
    field: Callable[[Named, Tensor], Named]
    """`(v, a) -> F_v`, by which v is moved with a minus."""
    settle: Callable[[Named, float], Named]
    """`(v, γ) -> v`, the proximal map after a step."""
    lipschitz: Callable[[float, int, float], float]
    """`(λ_max(AᵀA), parties, L_r) ->` a Lipschitz constant of the operator."""


def _as_it_is(v: Named, gamma: float) -> Named:
    return v


def lagrangian(owner: Owner, s: float, rho: float = 0.0) -> Form:
    """The Lagrangian, augmented where ρ > 0."""
    k = owner.k

    def say(v: Named, a: Tensor) -> Tensor:
        return v["y"] + rho * s * (k * a - v["z"]) if rho else v["y"]

    def field(v: Named, a: Tensor) -> Named:
        return {"z": owner.gradient(v["z"]) - s * say(v, a), "y": -s * (k * a - v["z"])}

    def lipschitz(lam: float, parties: int, smooth: float) -> float:
        coupling = 1.0 + k * k * lam
        return max(smooth, owner.loss.smooth) + s * math.sqrt(coupling) + rho * s * s * coupling

    return Form(False, lambda a: {"z": torch.zeros_like(a), "y": torch.zeros_like(a)}, say, field, _as_it_is, lipschitz)


def dual(owner: Owner, s: float) -> Form:
    """Without z; the conjugate of the loss is met by its proximal map, so that losses with bounded duals do too."""
    k = owner.k

    def settle(v: Named, gamma: float) -> Named:
        return {"y": owner.dual_prox(s * v["y"], gamma * s * s) / s}

    return Form(
        False,
        lambda a: {"y": torch.zeros_like(a)},
        lambda v, a: v["y"],
        lambda v, a: {"y": -s * k * a},
        settle,
        lambda lam, parties, smooth: smooth + s * k * math.sqrt(lam),
    )


def split(owner: Owner, s: float) -> Form:
    """A copy z_i and a multiplier y_i for each party; the owner alone holds them."""
    k = owner.k

    def field(v: Named, a: Tensor) -> Named:
        return {"z": owner.gradient(v["z"].sum(dim=0)) - s * v["y"], "y": -s * (k * a - v["z"])}

    return Form(
        True,
        lambda a: {"z": torch.zeros_like(a), "y": torch.zeros_like(a)},
        lambda v, a: v["y"],
        field,
        _as_it_is,
        lambda lam, parties, smooth: max(smooth, parties * owner.loss.smooth) + s * math.sqrt(1.0 + k * k * lam),
    )


def form(name: str, owner: Owner, s: float, rho: float) -> Form:
    """A form by its name."""
    if name == "dual":
        return dual(owner, s)
    if name == "split":
        return split(owner, s)
    return lagrangian(owner, s, rho if name == "augmented" else 0.0)
