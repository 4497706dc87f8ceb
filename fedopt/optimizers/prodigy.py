"""Prodigy: Adam that finds its learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Mishchenko, Defazio 2023, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, "
    "arXiv 2306.06101, algorithm 4"
)
@dataclass(frozen=True)
class prodigy:
    """Adam with steps multiplied by d, a lower bound on the distance to a solution that grows.

        m ← β₁ m + (1 - β₁) d g;  v ← β₂ v + (1 - β₂) d² g²
        r ← √β₂ r + (1 - √β₂) η d² ⟨g, x₀ - x⟩;  s ← √β₂ s + (1 - √β₂) η d² g
        x ← (1 - η λ) x - η d m / (√v + d ε), with the d of the step before;  d ← max(d, r / ‖s‖₁)

    lr: η, a factor of 1 that a schedule may change. beta1, beta2: in [0, 1). eps: ε. weight_decay: λ, decoupled.
    d0: the first d; it has to be below the distance.

    *Differences from the paper*: none in these; its growth limit is not there.
    """

    lr: Scalar = 1.0
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    d0: float = 1e-6

    def init(self, params: Named) -> State:
        """`d`, `r`, `m`, `v`, `s`, and `x0`, the first point."""
        zeros = {part: {name: torch.zeros_like(x) for name, x in params.items()} for part in ("m", "v", "s")}
        zero = first_step(params)
        return {"d": zero + self.d0, "r": zero, **zeros, "x0": {name: x.clone() for name, x in params.items()}}

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h, d = at_params(hyper, params), state["d"]
        root = h["beta2"].sqrt()
        m = {name: h["beta1"] * m + (1 - h["beta1"]) * d * grads[name] for name, m in state["m"].items()}
        v = {name: h["beta2"] * v + (1 - h["beta2"]) * (d * grads[name]) ** 2 for name, v in state["v"].items()}
        weight = (1 - root) * h["lr"] * d**2
        s = {name: root * s + weight * grads[name] for name, s in state["s"].items()}
        evidence = torch.stack([(grads[n] * (x0 - params[n])).sum() for n, x0 in state["x0"].items()]).sum()
        r = root * state["r"] + weight * evidence
        total = torch.stack([x.abs().sum() for x in s.values()]).sum()
        bound = torch.where(total > 0, r / torch.where(total > 0, total, torch.ones_like(total)), d)
        keep = 1 - h["lr"] * h["weight_decay"]
        new = {}
        for name, x in params.items():
            scale = v[name].sqrt() + d * h["eps"]
            step = m[name] / torch.where(scale > 0, scale, torch.ones_like(scale))
            new[name] = keep * x - h["lr"] * d * step
        return new, {"d": torch.maximum(d, bound), "r": r, "m": m, "v": v, "s": s, "x0": state["x0"]}
