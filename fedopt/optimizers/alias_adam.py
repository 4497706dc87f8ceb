"""ALIAS-Adam: Adam whose gradients are scaled by what signs tell of the descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Medyakov et al. 2025, Sign-SGD via Parameter-Free Optimization, arXiv 2506.03725 (ALIAS-Adam)")
@dataclass(frozen=True)
class alias_adam:
    """Adam on d g, with a number d for each tensor that grows.

        s = ⟨g, sign g_before⟩ (form "vit"), Σ |g| |g_before| ("llm")
        r ← √β₂ r + (1 - √β₂) d s;  d ← max(d, r)
        m ← β₁ m + (1 - β₁) d g;  v ← β₂ v + (1 - β₂) d² g²                              no correction of the bias
        "vit":  x ← (1 - η λ) x - η d m / (√v + ε)
        "llm":  x ← (1 - η λ) (x - η √(d² / (1 + (v - m²) / (m² + ε))) sign(m))

    lr: η, which with a schedule of its own stays to be chosen. beta1, beta2, eps, weight_decay: β₁, β₂, ε, λ.
    d_0, r_0: first d and r, 1 both in the form llm.

    *Differences from the paper*: none of these two; a third form of its code is not here. For gradients with g² well
    below ε the form llm tends to d sign(m).
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    form: Literal["vit", "llm"] = "vit"
    d_0: Annotated[float, pydantic.Field(gt=0)] = 1e-8
    r_0: float = 0.0

    def init(self, params: Named) -> State:
        """`m`, `v`, `g`, the gradient before; `d` and `r`, a number for each tensor."""
        zeros = {part: {name: torch.zeros_like(x) for name, x in params.items()} for part in ("m", "v", "g")}
        number = {name: torch.zeros((), dtype=x.dtype, device=x.device) for name, x in params.items()}
        d = {name: zero + self.d_0 for name, zero in number.items()}
        return {**zeros, "d": d, "r": {name: zero + self.r_0 for name, zero in number.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h = at_params(hyper, params)
        b1, b2, root, keep = h["beta1"], h["beta2"], h["beta2"].sqrt(), 1 - h["lr"] * h["weight_decay"]
        new: Named = {}
        after: dict[str, Named] = {"m": {}, "v": {}, "g": grads, "d": {}, "r": {}}
        for name, x in params.items():
            g, old = grads[name], state["g"][name]
            s = (g * old.sign()).sum() if self.form == "vit" else (g.abs() * old.abs()).sum()
            r = root * state["r"][name] + (1 - root) * state["d"][name] * s
            d = torch.maximum(state["d"][name], r)
            m = b1 * state["m"][name] + (1 - b1) * d * g
            v = b2 * state["v"][name] + (1 - b2) * (d * g) ** 2
            if self.form == "vit":
                scale = v.sqrt() + h["eps"]
                new[name] = keep * x - h["lr"] * d * m / torch.where(scale > 0, scale, torch.ones_like(scale))
            else:
                spread = 1 + (v - m**2) / (m**2 + h["eps"])
                new[name] = keep * (x - h["lr"] * (d**2 / spread).sqrt() * m.sign())
            for part, value in (("m", m), ("v", v), ("d", d), ("r", r)):
                after[part][name] = value
        return new, after
