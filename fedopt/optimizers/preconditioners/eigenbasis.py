"""The eigenbases of both sides, with or without a number for each entry there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers.preconditioners import _symmetric
from fedopt.registry import declare
from fedopt.types import Named

ROUNDING = 100.0
"""Times the machine's precision and the largest entry: what is no larger is rounding."""


@declare(
    reference="Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam, arXiv 2409.11321, algorithm 3; "
    "Frans, Levine, Abbeel 2025, A Stable Whitening Optimizer, arXiv 2506.07254, for rotation alone"
)
@dataclass(frozen=True)
class eigenbasis:
    """P X = D ∘ (Q_Aᵀ X Q_B), with Q_A, Q_B the eigenvectors of A = mean G Gᵀ and B = mean Gᵀ G.

        D = V̂^(1/4), V ← β₂ V + (1 - β₂) (Q_Aᵀ G Q_B)²           scaled; else D = 1

    scaled: whether D is. beta: of the means A and B. beta2, eps: as in `entrywise`, of V.
    every: bases are renewed in each of so many first steps, then once in as many.

    Differences from the papers: entries of a turned matrix that are rounding are taken for 0; eigenvectors by a
    full decomposition, not by one step of a QR iteration; V is kept when the bases turn, as in SOAP.
    """

    scaled: bool = True
    beta: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.95
    beta2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, pydantic.Field(ge=0)] = 1e-8
    every: Annotated[int, pydantic.Field(ge=1)] = 10

    def init(self, x: Tensor) -> Named:
        """`a`, `b`, `left` = Q_A, `right` = Q_B, `step`, and `v` where it scales."""
        sides = {"left": _symmetric.identity(x, 0), "right": _symmetric.identity(x, 1)}
        zeros = {name: torch.zeros_like(sides[side]) for name, side in (("a", "left"), ("b", "right"))}
        step = torch.zeros((), dtype=x.dtype, device=x.device)
        return {**zeros, **sides, "step": step, **({"v": torch.zeros_like(x)} if self.scaled else {})}

    def update(self, state: Named, g: Tensor) -> Named:
        due = _symmetric.due(state["step"], self.every)
        new = {
            "a": self.beta * state["a"] + (1.0 - self.beta) * _symmetric.product(g, g.mT),
            "b": self.beta * state["b"] + (1.0 - self.beta) * _symmetric.product(g.mT, g),
        }
        new["left"] = torch.where(due, _symmetric.basis(new["a"]), state["left"])
        new["right"] = torch.where(due, _symmetric.basis(new["b"]), state["right"])
        new["step"] = state["step"] + 1
        if self.scaled:
            turned = new["left"].mT @ g @ new["right"]
            new["v"] = self.beta2 * state["v"] + (1.0 - self.beta2) * turned.square()
        return new

    def at(self, state: Named) -> Named:
        return state

    def inward(self, at: Named, y: Tensor) -> Tensor:
        turned = at["left"].mT @ y @ at["right"]
        # where a gradient made the bases it is diagonal in them: what rounding leaves beside it has no sign to go by
        rounding = ROUNDING * torch.finfo(y.dtype).eps * turned.abs().amax()
        return self._scaled(at, torch.where(turned.abs() > rounding, turned, torch.zeros_like(turned)))

    def outward(self, at: Named, t: Tensor) -> Tensor:
        return at["left"] @ self._scaled(at, t) @ at["right"].mT

    def _scaled(self, state: Named, y: Tensor) -> Tensor:
        if not self.scaled:
            return y
        root = (state["v"] / (1.0 - self.beta2 ** state["step"])).sqrt() + self.eps
        d = root.sqrt()
        return torch.where(d > 0, y / torch.where(d > 0, d, torch.ones_like(d)), torch.zeros_like(y))
