"""Optimizers as pairs of pure functions; the same value steps one model, a cohort under vmap, or the server.

An optimizer is a frozen dataclass of hyper-parameters with `init(params) -> state` and
`update(grads, state, params, hyper) -> (params, state)`. `hyper` holds the dataclass's `Scalar` fields as scalar
tensors (`hyper_parameters`), evaluated for the round by the server and sent with the model; other fields (booleans,
choices, first values of the state) are fixed.

Some ask for more than the gradient at the parameters, which `advance` gives them: the gradient at another point
(`ahead`), the value of the loss, the gradient of the same samples at a second point (`behind`), or the losses of groups
of samples, which they weight.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, NamedTuple, cast

import pydantic
import torch
from torch import Tensor

from fedopt import schedules
from fedopt.optimizers._sos import sos as sos
from fedopt.registry import ConfigError, Registry, parameters
from fedopt.types import FedoptError, Named, Optimizer, State

registry = Registry("optimizers", __name__)

BOUNDS: dict[str, tuple[float, float]] = {
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "initial_accumulator": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "dampening": (0.0, 1.0),
    "threshold": (0.0, math.inf),
    "alpha": (0.0, 1.0),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "pi_lr": (0.0, math.inf),
    "pi_decay": (0.0, math.inf),
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

    Those of an optimizer within it have the name of its field before theirs, `vectors.lr` say. `update` casts them to
    the dtype of the parameters, so float64 loses nothing on the way.
    """
    numbers = {
        name: torch.tensor(schedules.at(getattr(optimizer, name), round), dtype=dtype)
        for name in scalar_fields(type(optimizer))
    }
    for field, inner in _inner(optimizer).items():
        numbers |= {f"{field}.{name}": value for name, value in hyper_parameters(inner, round, dtype).items()}
    return numbers


def within(hyper: Named, field: str) -> Named:
    """The numbers of the optimizer that is in a field of another one."""
    return {name.removeprefix(f"{field}."): value for name, value in hyper.items() if name.startswith(f"{field}.")}


def _inner(optimizer: Optimizer) -> dict[str, Optimizer]:
    """The optimizers that are fields of another one."""
    found = {field.name: getattr(optimizer, field.name) for field in fields(cast(Any, optimizer))}
    return {name: value for name, value in found.items() if hasattr(value, "update") and hasattr(value, "init")}


Oracle = Callable[[Named], tuple[Named, Tensor]]
"""The gradient and the loss at a point, of one and the same batch each time it is called."""


class Grouped(NamedTuple):
    """What a batch of weighted samples says at a point."""

    grads: Named
    """Of Σ_i w_(g(i)) l_i."""
    value: Tensor
    """The mean loss, without weights."""
    losses: Tensor
    """Σ l_i by group `[c]`, without weights."""
    samples: Tensor
    """Of samples."""


Groups = Callable[[Named, Callable[[Tensor], Tensor]], Grouped]
"""`(point, weights)`: the same batch with a weight for each group; `weights(count)` gives them, `[c]`."""


def asks(optimizer: Optimizer) -> frozenset[str]:
    """What `update` has to be given beside the gradient, or `function` in its place.

    `value`, `before`, `group_loss`, `factors`; see `advance`.
    """
    return frozenset(getattr(optimizer, "asks", ()))


Layers = Callable[[Named], tuple[Named, Tensor, dict[str, Any]]]
"""The gradient, the loss, and `fedopt.capture.Factors` of the gradients of linear layers by the name of the weight."""


class Values(NamedTuple):
    """The function itself, for those that know no gradient."""

    function: Callable[[Named], Tensor]
    """The loss at a point, of one and the same batch each time it is called."""
    key: Tensor
    """Of this step, for random directions."""


def groups_of(optimizer: Optimizer) -> int | None:
    """How many groups of samples the optimizer weights, if it does."""
    found: int | None = getattr(optimizer, "groups", None)
    return found if "group_loss" in asks(optimizer) else None


def at_server(optimizer: Optimizer, where: str, hears: frozenset[str] = frozenset()) -> Optimizer:
    """The optimizer, where a server may use it, which has an aggregate and what it `hears` of `asks`.

    Raises ConfigError if that is not enough.
    """
    if hasattr(optimizer, "ahead") or asks(optimizer) - hears:
        raise ConfigError(
            f"{where}.name",
            f"{type(optimizer).__name__} evaluates gradients or losses at points of its own, which a server cannot; it"
            " is for clients",
        )
    return optimizer


def advance(
    optimizer: Optimizer,
    oracle: Oracle,
    state: State,
    params: Named,
    hyper: Named,
    groups: Groups | None = None,
    layers: Layers | None = None,
    values: Values | None = None,
) -> tuple[Named, State, Named, Tensor]:
    """One step with all that the optimizer asks for; (parameters, state, gradient, loss).

    An optimizer may have `ahead(state, params, hyper)`, the point where it wants the gradient in place of the
    parameters; ask for `value`, the loss there; ask for `before`, the gradient of the same batch at the point
    `behind(state, params)`; and ask for `group_loss`, the losses of its `groups`, which then count in the gradient by
    `weights(state, hyper, count)`; ask for `factors`, what the gradients of linear layers are made of; or ask for the
    `function` alone, and then no gradient is computed, the one returned has no tensors, and the loss is the mean of
    the values that were asked for.

    Raises FedoptError where something is asked for that is not offered.
    """
    asking: Any = optimizer
    asked = asks(optimizer)
    if "function" in asked:
        return _by_values(optimizer, state, params, hyper, values)
    offers: dict[str, Any] = {}
    point = asking.ahead(state, params, hyper) if hasattr(optimizer, "ahead") else params
    if "group_loss" in asked:
        if groups is None:
            raise FedoptError(
                f"optimizer '{type(optimizer).__name__}' weights groups of samples, and there are none here; choose"
                " another optimizer.name, or strategy 'fedavg'"
            )
        seen = groups(point, lambda count: asking.weights(state, hyper, count))
        grads, value = seen.grads, seen.value
        offers |= {"group_loss": seen.losses, "count": seen.samples}
    elif "factors" in asked:
        if layers is None:
            raise FedoptError(
                f"optimizer '{type(optimizer).__name__}' asks for the inputs of linear layers, which are not told here;"
                " set optimizer.statistics = 'gradients'"
            )
        grads, value, offers["factors"] = layers(point)
    else:
        grads, value = oracle(point)
    if "value" in asked:
        offers["value"] = value.detach()
    if "before" in asked:
        offers["before"], _ = oracle(asking.behind(state, params))
    new, after = optimizer.update(grads, state, params, hyper, **offers)
    return new, after, grads, value


def _by_values(
    optimizer: Optimizer, state: State, params: Named, hyper: Named, values: Values | None
) -> tuple[Named, State, Named, Tensor]:
    if values is None:
        raise FedoptError(
            f"optimizer '{type(optimizer).__name__}' knows values of the function alone, and this strategy changes or"
            " uses the gradient; choose another optimizer.name, or strategy 'fedavg'"
        )
    met: list[Tensor] = []

    def function(point: Named) -> Tensor:
        met.append(values.function(point))
        return met[-1]

    new, after = optimizer.update({}, state, params, hyper, function=function, key=values.key)
    return new, after, {}, torch.stack(met).mean()


def parse(table: Any) -> Optimizer:
    """A table with a name and options, as the optimizer that it describes."""
    if hasattr(table, "update") and hasattr(table, "init"):
        return cast(Optimizer, table)
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise ValueError("a table with a name is needed, e.g. { name = 'adamw', lr = 0.001 }")
    try:
        return build(table["name"], {name: value for name, value in table.items() if name != "name"})
    except ConfigError as error:
        raise ValueError(str(error)) from None


Inner = Annotated[Any, pydantic.PlainValidator(parse)]
"""An optimizer within another one, in a config a table."""


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


def as_torch(
    params: Iterable[Any], optimizer: Optimizer, module: torch.nn.Module | None = None
) -> torch.optim.Optimizer:
    """The pair as an ordinary `torch.optim.Optimizer` over parameters, named parameters or groups of them.

    A group may set any field of the optimizer for itself (`{"params": ..., "lr": 0.01}`), torch's schedulers write
    `group["lr"]` as always, and a field with a schedule of its own advances by one round with each step.

    module: whose parameters they are, for an optimizer that asks for the inputs of linear layers.

    *Difference from torch.optim*: a parameter without a gradient keeps its value, but the state that the pair holds
    for it advances as with a gradient of zero.
    """
    from fedopt.optimizers._torch import TorchOptimizer

    return TorchOptimizer(params, optimizer, module)


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
