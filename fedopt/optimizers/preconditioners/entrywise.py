"""A positive number for each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.registry import declare
from fedopt.types import Named


@declare(reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, definition 2.2 and table 1")
@dataclass(frozen=True)
class entrywise:
    """P X = D ∘ X with D = V̂^p of the squared gradients V; entries with D = 0 do not move.

        V ← β₂ V + (1 - β₂) g²,  V̂ = V / (1 - β₂ᵗ)          mean = "ema"
        V ← V + g²,              V̂ = V                      mean = "sum"

    mean: of the squares, as above. power: p: 1/4 is Adam and AdaGrad, 1/6 MADGRAD, 1/2 Adam-SANIA.
    beta2: β₂. eps: ε in D² = V̂^(2p) + ε. damped: `before`: ε is added before the bias is corrected,
        D² = (V^(2p) + ε) / (1 - β₂ᵗ)^(2p).
    frozen_step: t = 1 for good, as the authors' release of MuAdam has it by mistake.
    """

    power: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.25
    mean: Literal["ema", "sum"] = "ema"
    beta2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, pydantic.Field(ge=0)] = 1e-8
    damped: Literal["before", "after"] = "after"
    frozen_step: bool = False

    def init(self, x: Tensor) -> Named:
        """`v` and `step`."""
        return {"v": torch.zeros_like(x), "step": torch.zeros((), dtype=x.dtype, device=x.device)}

    def update(self, state: Named, g: Tensor) -> Named:
        if self.mean == "sum":
            v = torch.addcmul(state["v"], g, g)
        else:
            v = torch.addcmul(self.beta2 * state["v"], g, g, value=1.0 - self.beta2)
        return {"v": v, "step": state["step"] + 1}

    def at(self, state: Named) -> Named:
        """`inverse`: 1 / D, 0 where D is 0."""
        step = torch.ones_like(state["step"]) if self.frozen_step else state["step"]
        seen = 1.0 - self.beta2**step if self.mean == "ema" else torch.ones_like(step)
        power = 2.0 * self.power
        v = state["v"] if self.damped == "before" else state["v"] / seen
        root = v.sqrt() if power == 0.5 else v if power == 1.0 else v**power
        whole = seen**self.power if self.damped == "before" else torch.ones_like(seen)
        if self.eps:
            return {"inverse": (root + self.eps).rsqrt() * whole}
        return {"inverse": torch.where(root > 0, root.rsqrt(), torch.zeros_like(root)) * whole}

    def inward(self, at: Named, y: Tensor) -> Tensor:
        return y * at["inverse"]

    def outward(self, at: Named, t: Tensor) -> Tensor:
        return t * at["inverse"]
