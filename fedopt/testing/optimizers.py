"""Laws of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from fedopt import keys
from fedopt.optimizers import Grouped, Values, advance, groups_of, hyper_parameters, registry
from fedopt.registry import Component, parameters, validate
from fedopt.schedules import Scalar
from fedopt.testing._laws import close, found, require, run, same, untouched, vector
from fedopt.types import Named, Optimizer, State

_SHAPES: dict[str, tuple[int, ...]] = {"weight": (6, 4), "bias": (6,), "kernel": (3, 2, 3, 3), "scale": (1,)}
_DTYPES = (torch.float32, torch.float64)
_STEPS = 3
_CLIENTS = 4


def check_optimizer(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of an optimizer, with these options; `lr` is 0.1 where it is needed and not given.

    shape         names, shapes and dtypes of the parameters stay, and all is finite; float32 and float64
    state         the state keeps its structure, shapes and dtypes from `init` on, and its leaves are tensors
    purity        parameters, gradients, state and hyper are not changed in place
    determinism   the same arguments give the same bits
    stacking      a cohort under vmap goes the way of each client alone, up to rounding

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    rate = parameters(component).get("lr")
    if rate is not None and rate.required and rate.annotation == Scalar:
        options = {"lr": 0.1, **options}
    optimizer: Optimizer = component(**validate(component, options, "optimizer"))
    run(
        component,
        {
            "shape": lambda: _shape(optimizer),
            "state": lambda: _state(optimizer),
            "purity": lambda: _purity(optimizer),
            "determinism": lambda: _determinism(optimizer),
            "stacking": lambda: _stacking(optimizer),
        },
    )


def _named(draw: int, dtype: torch.dtype, *lead: int) -> Named:
    key = keys.root(draw)
    return {n: keys.normal(keys.fold(key, n), *lead, *shape, dtype=dtype) for n, shape in _SHAPES.items()}


def _moved(optimizer: Optimizer, slope: Named, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
    """One step with all that the optimizer asks for, on ⟨slope, x⟩ + ‖x‖² / 20."""

    def oracle(x: Named) -> tuple[Named, Tensor]:
        value = torch.stack([(slope[n] * x[n] + 0.05 * x[n] ** 2).sum() for n in x]).sum()
        return {n: slope[n] + 0.1 * x[n] for n in x}, value

    number = groups_of(optimizer) or 0

    def groups(x: Named, weights: Callable[[Tensor], Tensor]) -> Grouped:
        """The first group has this loss and the second one nothing, of three samples."""
        grads, value = oracle(x)
        count = torch.full_like(value, 3.0)
        losses = torch.stack([value, *(torch.zeros_like(value) for _ in range(number - 1))])
        return Grouped({n: weights(count)[0] * g for n, g in grads.items()}, value / 3.0, losses, count)

    values = Values(lambda x: oracle(x)[1], keys.root(11))
    params, state, _, _ = advance(optimizer, oracle, state, params, hyper, groups if number else None, values=values)
    return params, state


def _path(optimizer: Optimizer, params: Named, grads: Callable[[int], Named]) -> tuple[Named, State]:
    state = optimizer.init(params)
    for step in range(_STEPS):
        params, state = _moved(optimizer, grads(step), state, params, hyper_parameters(optimizer, step))
    return params, state


def _shape(optimizer: Optimizer) -> None:
    for dtype in _DTYPES:
        params, _ = _path(optimizer, _named(0, dtype), lambda step, dtype=dtype: _named(1 + step, dtype))  # type: ignore[misc]
        require(list(params) == list(_SHAPES), f"the parameters are {list(params)} in place of {list(_SHAPES)}")
        for name, shape in _SHAPES.items():
            vector(params[name], shape, dtype, f"the parameter {name}")


def _state(optimizer: Optimizer) -> None:
    for dtype in _DTYPES:
        first = optimizer.init(_named(0, dtype))
        _, last = _path(optimizer, _named(0, dtype), lambda step, dtype=dtype: _named(1 + step, dtype))  # type: ignore[misc]
        (a, tree), (b, other) = pytree.tree_flatten(first), pytree.tree_flatten(last)
        require(tree == other, f"the structure changes from {tree} to {other}")
        for x, y in zip(a, b, strict=True):
            require(isinstance(x, Tensor) and isinstance(y, Tensor), f"a leaf is a {type(y).__name__}, not a tensor")
            require(
                x.shape == y.shape and x.dtype == y.dtype,
                f"{x.dtype} {list(x.shape)} becomes {y.dtype} {list(y.shape)}",
            )


def _purity(optimizer: Optimizer) -> None:
    params, state = _path(optimizer, _named(0, torch.float32), lambda step: _named(1 + step, torch.float32))
    grads, hyper = _named(9, torch.float32), hyper_parameters(optimizer, _STEPS)
    untouched(lambda: _moved(optimizer, grads, state, params, hyper), (grads, state, params, hyper))
    untouched(lambda: optimizer.init(params), params)


def _determinism(optimizer: Optimizer) -> None:
    once, twice = (
        _path(optimizer, _named(0, torch.float32), lambda step: _named(1 + step, torch.float32)) for _ in range(2)
    )
    same(once, twice, "two equal calls")


def _stacking(optimizer: Optimizer) -> None:
    for dtype in _DTYPES:
        start = _named(0, dtype, _CLIENTS)
        grads = [_named(1 + step, dtype, _CLIENTS) for step in range(_STEPS)]

        def whole(params: Named, *of_step: Named) -> Named:
            return _path(optimizer, params, of_step.__getitem__)[0]

        stacked = vmap(whole)(start, *grads)
        for client in range(_CLIENTS):

            def row(named: Named, client: int = client) -> Named:
                return {n: t[client] for n, t in named.items()}

            alone = whole(row(start), *(row(g) for g in grads))
            for name, wanted in alone.items():
                size = 10.0 * max(float(wanted.abs().max()), 1.0)
                close(stacked[name][client], wanted, size, f"client {client} in a cohort: {name}")
