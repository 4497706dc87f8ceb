"""Steepest descent in a preconditioned norm: any norm with any preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedopt.optimizers import Inner, _matrices, at_params, norms, preconditioners
from fedopt.optimizers._matrices import ROWS, VECTORS, Scale
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.preconditioners.none import none
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

SPECTRAL, NONE = spectral(), none()


@declare(reference="Veprikov et al. 2025, Preconditioned Norms, arXiv 2510.10777, theorem 2.3 and algorithm 1")
@dataclass(frozen=True)
class preconditioned:
    """x ← x + η LMO_P(m), the step of norm 1 under ‖P ·‖ that is steepest, for each matrix.

        m ← β₁ m + (1 - β₁) g;  m̂ = m / (1 - β₁ᵗ)
        y = P⁻ᵀ m̂;  t = argmax ⟨y, t⟩ over ‖t‖ <= 1;  x ← (1 - η λ) x - η c P⁻¹ t

    The combinations that have names:

        norm                      preconditioner                        it is
        frobenius                 none                                  normalised SGD
        max_entry                 none                                  sign descent
        spectral                  none                                  Muon; Scion with sign steps for vectors
        frobenius, not normalised kronecker, p = 1/4                    Shampoo (sum), K-FAC by gradients (ema)
                                  kronecker, p = 1/2, one_sided         one-sided Shampoo
                                  kronecker, kl                         KL-Shampoo
                                  entrywise, p = 1/4                    AdaGrad (sum), Adam (ema)
                                  entrywise, p = 1/6, sum               MADGRAD's direction
                                  entrywise, p = 1/2                    Adam-SANIA
                                  eigenbasis                            SOAP
        max_entry                 eigenbasis, not scaled                SPlus
        spectral                  entrywise, p = 1/4                    MuAdam
        spectral                  entrywise, p = 1/2                    MuAdam-SANIA

    norm, preconditioner: a name, or a table with a name and options. beta1: β₁. nesterov: (1 - β₁) g + β₁ m in place
    of m. bias_correction: whether m̂ is, else m. scale: c, see `fedopt.optimizers._matrices`. weight_decay: λ, of the
    matrices.
    vectors: the optimizer of all other parameters, rows, apart: which those are.
    """

    lr: Scalar
    norm: norms.Given = SPECTRAL
    preconditioner: preconditioners.Given = NONE
    beta1: Scalar = 0.9
    nesterov: bool = False
    bias_correction: bool = True
    scale: Scale = "none"
    weight_decay: Scalar = 0.0
    vectors: Inner = VECTORS
    rows: int = ROWS
    apart: tuple[str, ...] = ()

    def init(self, params: Named) -> State:
        """For each matrix `m`, `step` and the state of the preconditioner, `p`; see `fedopt.optimizers._matrices`."""

        def first(x: Tensor) -> Any:
            zero = torch.zeros((), dtype=x.dtype, device=x.device)
            return {"m": torch.zeros_like(x), "step": zero, "p": self.preconditioner.init(x)}

        return _matrices.init(self, params, first)

    @property
    def asks(self) -> frozenset[str]:
        """What the preconditioner asks for."""
        return frozenset(getattr(self.preconditioner, "asks", ()))

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, factors: dict[str, Any] | None = None
    ) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, weight_decay and those of `vectors`; factors: by name."""
        h = at_params(hyper, params)

        def rule(
            grads: dict[str, Tensor], states: dict[str, Any], own: dict[str, Tensor]
        ) -> tuple[dict[str, Tensor], dict[str, Any]]:
            after, maps, inward = {}, {}, []
            for name, g in grads.items():
                before, beta = states[name], h["beta1"]
                m = torch.lerp(g, before["m"], beta)
                offers = {"factors": factors.get(name)} if factors is not None else {}
                p = self.preconditioner.update(before["p"], g, **offers)
                after[name] = {"m": m, "step": before["step"] + 1, "p": p}
                maps[name] = self.preconditioner.at(p)
                ahead = torch.lerp(g, m, beta) if self.nesterov else m
                if self.bias_correction:
                    ahead = ahead / (1 - beta ** after[name]["step"])
                inward.append(self.preconditioner.inward(maps[name], ahead))
            new = {}
            for name, t in zip(grads, self.norm.toward(inward), strict=True):
                x = own[name] if self.weight_decay == 0 else (1 - h["lr"] * h["weight_decay"]) * own[name]
                step = self.preconditioner.outward(maps[name], t)
                new[name] = torch.addcmul(x, step, -h["lr"] * _matrices.scaled(self.scale, x))
            return new, after

        return _matrices.update(self, grads, state, params, hyper, rule)
