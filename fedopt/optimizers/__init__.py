"""Optimizers as pairs of pure functions; the same value steps one model, a cohort under vmap, or the server.

An optimizer is a frozen dataclass of hyper-parameters with `init(params) -> state` and
`update(grads, state, params, hyper) -> (params, state)`. `hyper` holds the dataclass's `Scalar` fields as scalar
tensors (`hyper_parameters`), evaluated for the round by the server and sent with the model; other fields (booleans,
choices, first values of the state) are fixed.

A field that is the plain number 0 switches its term off for good (no momentum buffer is kept for `momentum = 0`), so
`hyper` may carry other values than the fields, but cannot bring a term back that the field leaves out.

On the server (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2) the pseudo-gradient is `-delta`:

    FedAvgM     sgd(lr=η, momentum=β)
    FedAdagrad  adagrad(lr=η, eps=τ, initial_accumulator=τ²)
    FedAdam     adam(lr=η, beta1=0.9, beta2=0.99, eps=τ, initial_accumulator=τ², bias_correction=False)
    FedYogi     yogi(lr=η, beta1=0.9, beta2=0.99, eps=τ, initial_accumulator=τ²)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from fedopt import schedules
from fedopt.registry import ConfigError, Registry, parameters
from fedopt.types import Named, Optimizer

registry = Registry("optimizers", __name__)

BOUNDS: dict[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "initial_accumulator": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "dampening": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
}
"""Lower bound (included) and upper bound (excluded) of the fields with a name that the whole room shares."""

_PROBED_ROUNDS = (0, 1, 10, 100, 1_000, 10_000, 100_000)


def build(name: str, options: Mapping[str, Any], where: str = "optimizer") -> Optimizer:
    """The optimizer of this name with these options; `where` is their config path, for messages.

    Raises ConfigError also for a value out of its range (`BOUNDS`; a schedule is looked at in a few rounds).
    """
    optimizer = cast(Optimizer, registry.build(name, options, where))
    for field in BOUNDS.keys() & options.keys():
        _check_bounds(field, getattr(optimizer, field), f"{where}.{field}")
    return optimizer


def hyper_parameters(optimizer: Optimizer, round: int, dtype: torch.dtype = torch.float64) -> Named:
    """The optimizer's `Scalar` fields in this round (0 for the first), each a scalar tensor of `dtype`.

    `update` casts them to the dtype of the parameters, so float64 loses nothing on the way.
    """
    return {
        name: torch.tensor(schedules.at(getattr(optimizer, name), round), dtype=dtype)
        for name in scalar_fields(type(optimizer))
    }


def hyper(optimizer: Optimizer, round: int) -> Named:
    """`hyper_parameters` in float64, as `update` takes them."""
    return hyper_parameters(optimizer, round)


@cache
def scalar_fields(kind: type) -> tuple[str, ...]:
    """Names of the fields of an optimizer class that have the type `Scalar`."""
    return tuple(name for name, option in parameters(kind).items() if option.annotation == schedules.Scalar)


def at_params(hyper: Named, params: Named) -> Named:
    """The hyper-parameters in the dtype and on the device of the parameters."""
    like = next(iter(params.values()), None)
    return hyper if like is None else {name: h.to(dtype=like.dtype, device=like.device) for name, h in hyper.items()}


def first_step(params: Named) -> Tensor:
    """A step count of zero: a scalar tensor, so that it stacks and the clients of a cohort may differ in it."""
    like = next(iter(params.values()), None)
    return torch.zeros(()) if like is None else torch.zeros((), dtype=like.dtype, device=like.device)


def as_torch(params: Iterable[Any], optimizer: Optimizer) -> torch.optim.Optimizer:
    """The pair as an ordinary `torch.optim.Optimizer` over parameters, named parameters or groups of them.

    A group may set any field of the optimizer for itself (`{"params": ..., "lr": 0.01}`), torch's schedulers write
    `group["lr"]` as always, and a field with a schedule of its own advances by one round with each step.

    *Difference from torch.optim*: a parameter without a gradient keeps its value, but the state that the pair holds
    for it advances as with a gradient of zero.
    """
    from fedopt.optimizers._torch import TorchOptimizer

    return TorchOptimizer(params, optimizer)


def _check_bounds(field: str, value: float | schedules.Schedule, where: str) -> None:
    low, high = BOUNDS[field]
    for round in _PROBED_ROUNDS:
        try:
            number = schedules.at(value, round)
        except OverflowError:
            number = math.inf
        if not low <= number < high:
            wanted = f"a number >= {low:g}" if high == math.inf else f"a number with {low:g} <= {field} < {high:g}"
            of = f" in round {round}" if isinstance(value, schedules.Schedule) else ""
            raise ConfigError(where, f"{wanted} is needed; {number!r} was given{of}")
