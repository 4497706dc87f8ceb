"""A positive matrix on each side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers.preconditioners import _symmetric
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Gupta, Koren, Singer 2018, Shampoo, arXiv 1802.09568, algorithm 1; Lin et al. 2025, Understanding and "
    "Improving Shampoo and SOAP via Kullback-Leibler Minimization, arXiv 2509.03378, for kl; Veprikov et al. 2025, "
    "Preconditioned Norms, arXiv 2510.10777, table 1"
)
@dataclass(frozen=True)
class kronecker:
    """P X = A^(p/2) X B^(p/2), so that a step that is linear in G is A^(-p) G B^(-p).

        A ← A + G Gᵀ,                     B ← B + Gᵀ G                           statistics = "sum"
        A ← β A + (1 - β) G Gᵀ,           B ← β B + (1 - β) Gᵀ G                 "ema"
        A ← β A + (1 - β) G B⁻¹ Gᵀ,       B ← β B + (1 - β) Gᵀ A⁻¹ G             "kl", both from the old A and B
        A ← β A + (1 - β) k Sᵀ S,         B ← β B + (1 - β) Xᵀ X / k             "factors" of G = Sᵀ X with k rows

    A and B begin as 0; ε λ_max I is added to them, and exponential means are divided by 1 - βᵗ, where they are
    used. In the first step of "kl" the inverses are I. Where a matrix is no linear layer's, "factors" is "ema".

    power: p: 1/4 is Shampoo; 1/2 for one side alone. one_sided: B = I. statistics: as above. beta: β. eps: ε.
    every: A and B are taken into the step in each of so many first steps, then once in as many.

    Differences from the papers: eigenvalues in place of iterative roots.
    """

    statistics: Literal["sum", "ema", "kl", "factors"] = "sum"
    power: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.25
    one_sided: bool = False
    beta: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.99
    eps: Annotated[float, pydantic.Field(gt=0)] = 1e-6
    every: Annotated[int, pydantic.Field(ge=1)] = 10

    def init(self, x: Tensor) -> Named:
        """`a`, `b`, their roots A^(-p/2) `left`, `right`, and `step`."""
        sides = {"a": _symmetric.identity(x, 0)} | ({} if self.one_sided else {"b": _symmetric.identity(x, 1)})
        roots = {"left": sides["a"]} | ({} if self.one_sided else {"right": sides["b"]})
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        return {**{name: torch.zeros_like(side) for name, side in sides.items()}, **roots, "step": zero}

    @property
    def asks(self) -> frozenset[str]:
        """`factors` of the gradient, where statistics are of them."""
        return frozenset({"factors"} if self.statistics == "factors" else ())

    def update(self, state: Named, g: Tensor, factors: Any = None) -> Named:
        step, a, b = state["step"] + 1, state["a"], state.get("b")
        keep, share = (1.0, 1.0) if self.statistics == "sum" else (self.beta, 1.0 - self.beta)
        between = [g, g.mT]
        if self.statistics == "kl":
            first = state["step"] == 0
            seen = torch.where(first, torch.ones_like(step), 1.0 - self.beta ** state["step"])
            if b is not None:
                between[0] = torch.where(first, g, g @ _symmetric.power(b / seen, -1.0, self.eps))
            between[1] = torch.where(first, g.mT, g.mT @ _symmetric.power(a / seen, -1.0, self.eps))
        sides = [(between[0], g.mT), (between[1], g)]
        if factors is not None:
            rows = factors.rows.clamp(min=1.0)
            sides = [(rows * factors.slopes.mT, factors.slopes), (factors.inputs.mT / rows, factors.inputs)]
        new = {"a": keep * a + share * _symmetric.product(*sides[0])}
        if b is not None:
            new["b"] = keep * b + share * _symmetric.product(*sides[1])
        whole = 1.0 - self.beta**step if self.statistics != "sum" else torch.ones_like(step)
        due = _symmetric.due(state["step"], self.every)
        for name, root in (("a", "left"), ("b", "right")):
            if name in new:
                fresh = _symmetric.power(new[name] / whole, -0.5 * self.power, self.eps)
                new[root] = torch.where(due, fresh, state[root])
        return {**new, "step": step}

    def at(self, state: Named) -> Named:
        return state

    def inward(self, at: Named, y: Tensor) -> Tensor:
        y = at["left"] @ y
        return y @ at["right"] if "right" in at else y

    def outward(self, at: Named, t: Tensor) -> Tensor:
        return self.inward(at, t)
