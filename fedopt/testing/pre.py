"""Laws of pre-aggregations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators.pre import Step, lift, registry
from fedopt.registry import Component, facts
from fedopt.testing._laws import close, found, require, run, same, untouched, vector
from fedopt.types import FedoptError

_DTYPES = (torch.float32, torch.float64)
_FAR = 200


def check_pre(component: Component | str, /, **options: Any) -> None:
    """Measure the laws of a pre-aggregation, with these options.

    shape         `[n, d] -> [m, d]`, finite, in the dtype of the updates; m = n where rows stay the clients', else as
                  `count` says
    purity        nothing is changed in place
    determinism   the same arguments give the same bits
    permutation   rows that stay the clients' follow their clients into another order
    precondition  every number of clients that it admits works, every other one is refused with its number
    finite        finite for equal rows, for zeros, and with one row of 1e30

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    step = lift(component, options)
    run(
        component,
        {
            "shape": lambda: _shape(step),
            "purity": lambda: _purity(step),
            "determinism": lambda: _determinism(step),
            "permutation": lambda: _permutation(step),
            "precondition": lambda: _precondition(component, step),
            "finite": lambda: _finite(step),
        },
    )


def _sizes(step: Step) -> tuple[int, int]:
    admitted = [n for n in range(1, _FAR) if step.admits(n) is None]
    require(bool(admitted), f"no number of clients below {_FAR} is admitted")
    return admitted[0], next((n for n in admitted if n >= 11), admitted[-1])


def _updates(step: Step, dtype: torch.dtype, draw: int = 0, n: int | None = None) -> Tensor:
    n = _sizes(step)[1] if n is None else n
    return keys.normal(keys.fold(keys.root(draw), "updates", n), n, 7, dtype=dtype)


def _applied(step: Step, updates: Tensor) -> Tensor:
    n = updates.shape[0]
    return step.apply(updates, weights=updates.new_ones(n), clients=torch.arange(n), key=keys.root(1))


def _shape(step: Step) -> None:
    for dtype in _DTYPES:
        updates = _updates(step, dtype)
        n = updates.shape[0]
        m = n if step.rows == "same" else step.count(n)
        vector(_applied(step, updates), (m, 7), dtype, "the result")


def _purity(step: Step) -> None:
    updates = _updates(step, torch.float64)
    untouched(lambda: _applied(step, updates), updates)


def _determinism(step: Step) -> None:
    updates = _updates(step, torch.float32)
    same(_applied(step, updates), _applied(step, updates), "two equal calls")


def _permutation(step: Step) -> None:
    for draw in range(5):
        updates = _updates(step, torch.float64, draw)
        n = updates.shape[0]
        order = keys.permutation(keys.root(n), n)
        got, wanted = _applied(step, updates[order]), _applied(step, updates)
        if step.rows == "same":
            close(got, wanted[order], float(updates.abs().max()), "the same clients in another order")
        else:
            require(got.shape == wanted.shape, "the same clients in another order give another number of rows")


def _precondition(component: Component, step: Step) -> None:
    declared = facts(component)
    require(
        ("requires" in declared) == ("admits" in declared),
        "`requires` (words) and `admits` (a function of n and options) have to be declared together",
    )
    for n in range(1, _sizes(step)[0] + 12):
        updates, message = _updates(step, torch.float32, n=n), step.admits(n)
        if message is None:
            vector(
                _applied(step, updates), (step.count(n), 7), torch.float32, f"admitted with {n} clients, but the result"
            )
            continue
        require(str(n) in message, f"{n} clients are refused without their number: {message}")
        try:
            _applied(step, updates)
        except FedoptError:
            continue
        raise AssertionError(f"{n} clients are not admitted, yet a result is given")


def _finite(step: Step) -> None:
    for dtype in _DTYPES:
        updates = _updates(step, dtype)
        n = updates.shape[0]
        outlier = updates.clone()
        outlier[n // 2] = 1e30 * torch.sign(outlier[n // 2])
        hard = {
            "equal rows": updates[:1].expand(n, 7).clone(),
            "rows of zeros": torch.zeros_like(updates),
            "one row of 1e30": outlier,
        }
        for name, rows in hard.items():
            vector(_applied(step, rows), (step.count(n), 7), dtype, f"with {name} the result")
