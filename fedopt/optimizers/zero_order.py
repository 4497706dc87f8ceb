"""Any optimizer on gradients that are estimated from values of the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import Inner, asks, at_params, directions, first_step, within
from fedopt.optimizers.directions.gaussian import gaussian
from fedopt.optimizers.sgd import sgd
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

Function = Callable[[Named], Tensor]
"""The loss at a point, of one and the same batch each time."""

GAUSSIAN, SGD = gaussian(), sgd(lr=1e-3)


def along(params: Named, step: Tensor | float, z: Named) -> Named:
    """x + t z."""
    return {name: x + step * z[name] for name, x in params.items()}


def slope(function: Function, params: Named, tau: Tensor, z: Named) -> Tensor:
    """(f(x + τ z) - f(x - τ z)) / (2 τ)."""
    return (function(along(params, tau, z)) - function(along(params, -tau, z))) / (2.0 * tau)


@declare(
    reference="Malladi et al. 2023, arXiv 2305.17333 (MeZO); Liu et al. 2019, signSGD via Zeroth-Order Oracle; "
    "Zhang et al. 2024, Revisiting Zeroth-Order Optimization, arXiv 2402.11592, for the others",
    examples=({"of": {"name": "sgd", "lr": 0.05}},),
)
@dataclass(frozen=True)
class zero_order:
    """Steps of another optimizer along estimates of the gradient from function values.

        g = (1/q) Σ_k ρ_k z_k,  ρ_k = (f(x + τ z_k) - f(x - τ z_k)) / (2 τ)

    Both values are of the same samples and dropout masks. What has a name:

        of                                    directions          it is
        sgd                                   gaussian            MeZO (ZO-SGD), with momentum ZO-SGD-momentum
        sgd                                   gaussian, layers    LeZO
        signum, momentum = 0                  gaussian            ZO-SignSGD, as in its paper
        sgd, sign = true                      gaussian            ZO-SignSGD, as in benchmarks
        adam; adamm                           gaussian            ZO-Adam; ZO-AdaMM
        muon, momentum = 0, nesterov = false  gaussian            ZO-Muon
        sgd, sign = true                      orthogonal          matrix-efficient ZO-Muon

    of: the optimizer. directions: of the z. tau: τ > 0. queries: q. sign: sign ρ in place of ρ.
    form: `two_point`; `one_sided`: (f(x + τ z) - f(x)) / τ, one more evaluation in all.

    z is drawn again where it is needed; the state is that of `of` and the number of evaluations.
    """

    of: Inner = SGD
    directions: directions.Given = GAUSSIAN
    tau: Scalar = 1e-3
    queries: Annotated[int, pydantic.Field(ge=1)] = 1
    sign: bool = False
    form: Literal["two_point", "one_sided"] = "two_point"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if asks(self.of) or hasattr(self.of, "ahead"):
            raise ValueError(f"of = {type(self.of).__name__} asks for more than a gradient; take another")

    @property
    def asks(self) -> frozenset[str]:
        """The function, in place of its gradient."""
        return frozenset({"function"})

    def init(self, params: Named) -> State:
        """`of`: the optimizer's; `evaluations`."""
        return {"of": self.of.init(params), "evaluations": first_step(params)}

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, function: Function, key: Tensor
    ) -> tuple[Named, State]:
        """One step; grads is empty. function: the loss; key: of this step. `hyper` holds tau, and those of `of`."""
        tau = at_params({"tau": hyper["tau"]}, params)["tau"]
        total = {name: torch.zeros_like(x) for name, x in params.items()}
        here = function(params) if self.form == "one_sided" else None
        for k in range(self.queries):
            z = self.directions.draw(keys.fold(key, k), params)
            rise = function(along(params, tau, z)) - (here if here is not None else function(along(params, -tau, z)))
            rho = rise / (tau if here is not None else 2.0 * tau)
            rho = rho.sign() if self.sign else rho
            total = along(total, rho / self.queries, z)
        new, inner = self.of.update(total, state["of"], params, within(hyper, "of"))
        spent = 2 * self.queries if here is None else self.queries + 1
        return new, {"of": inner, "evaluations": state["evaluations"] + spent}
