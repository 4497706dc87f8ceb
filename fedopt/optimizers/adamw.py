"""Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass

from fedopt.optimizers import at_params
from fedopt.optimizers.adam import adam
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(reference="Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2")
@dataclass(frozen=True)
class adamw:
    """Adam with decoupled weight decay: the weights shrink by themselves, outside the moments.

        x ← (1 - η λ) x, then a step of `adam` with the gradient at the old x

    lr: η >= 0. beta1, beta2: in [0, 1). eps: ε >= 0. weight_decay: λ >= 0. bias_correction, initial_accumulator: as
    in `adam`.

    *Differences from the paper*: the decay is multiplied by η, as in torch, and not by a schedule multiplier alone.
    """

    lr: Scalar = 1e-3
    beta1: Scalar = 0.9
    beta2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 1e-2
    bias_correction: bool = True
    initial_accumulator: float = 0.0

    def _adam(self) -> adam:
        return adam(bias_correction=self.bias_correction, initial_accumulator=self.initial_accumulator)

    def init(self, params: Named) -> State:
        """`step`, `m` and `v`, as in `adam`."""
        return self._adam().init(params)

    def update(self, grads: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """One step; `hyper` holds lr, beta1, beta2, eps and weight_decay."""
        h = at_params(hyper, params)
        keep = 1 - h["lr"] * h["weight_decay"]
        return self._adam().update(grads, state, {name: keep * x for name, x in params.items()}, hyper)
