"""AdaMM: AMSGrad without bias correction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Chen et al. 2019, ZO-AdaMM: Zeroth-Order Adaptive Momentum Method, arXiv 1910.06513, algorithm 1; "
    "Reddi, Kale, Kumar 2018, On the Convergence of Adam and Beyond (AMSGrad)"
)
@dataclass(frozen=True)
class adamm:
    """Steps scaled by the largest second moment so far.

        m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  v̂ ← max(v̂, v);  x ← x - η m / (√v̂ + ε)

    lr: η >= 0. beta1, beta2: in [0, 1). eps: ε.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-10

    def init(self, params: Named) -> State:
        """`m`, `v` and `most` = v̂."""
        return {key: {name: torch.zeros_like(x) for name, x in params.items()} for key in ("m", "v", "most")}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2 and eps."""
        h = at_params(hyper, params)
        m = {name: h["beta1"] * m + (1 - h["beta1"]) * grads[name] for name, m in state["m"].items()}
        v = {name: h["beta2"] * v + (1 - h["beta2"]) * grads[name] ** 2 for name, v in state["v"].items()}
        most = {name: torch.maximum(state["most"][name], v[name]) for name in v}
        new = {name: x - h["lr"] * m[name] / (most[name].sqrt() + h["eps"]) for name, x in params.items()}
        return new, {"m": m, "v": v, "most": most}
