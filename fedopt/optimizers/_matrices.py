"""Optimizers whose rule is for matrices, and which leave other parameters to another optimizer.

A matrix is a tensor of two or more dimensions, seen as `[first, all others]` (a kernel is `[out, in · h · w]`), with
fewer than `rows` rows (an embedding or a head over a vocabulary has more), whose name fits none of the patterns
`apart`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from fedopt.optimizers import within
from fedopt.optimizers.adamw import adamw
from fedopt.types import Named, Optimizer, State

VECTORS = adamw(lr=1e-4, weight_decay=1e-5)
"""What other parameters are left to, where nothing else is said."""
ROWS = 10_000

Scale = Literal["rows", "rms", "none"]
"""What a step of a matrix `[m, n]` is multiplied with: `rows` √max(1, m/n), `rms` 0.2 √max(m, n), `none` 1."""


class Method(Protocol):
    """An optimizer with the three options."""

    @property
    def vectors(self) -> Optimizer: ...
    @property
    def rows(self) -> int: ...
    @property
    def apart(self) -> tuple[str, ...]: ...


def matrices(method: Method, params: Named) -> dict[str, Tensor]:
    """The matrices among the parameters, `[m, n]` each."""

    def fits(name: str, x: Tensor) -> bool:
        if x.dim() < 2 or x.shape[0] >= method.rows or not x.numel():
            return False
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in method.apart)

    return {name: x.reshape(x.shape[0], -1) for name, x in params.items() if fits(name, x)}


def init(method: Method, params: Named, first: Callable[[Tensor], Any]) -> State:
    """`matrices`: what `first` gives for each; `vectors`: the state of the other optimizer."""
    own = matrices(method, params)
    others = {name: x for name, x in params.items() if name not in own}
    return {"matrices": {name: first(x) for name, x in own.items()}, "vectors": method.vectors.init(others)}


Rule = Callable[[dict[str, Tensor], dict[str, Any], dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]
"""(gradients, states, matrices) -> (new matrices, new states), all by name."""


def update(method: Method, grads: Named, state: State, params: Named, hyper: Named, rule: Rule) -> tuple[Named, State]:
    """One step: the rule for the matrices, the other optimizer for the rest."""
    own = matrices(method, params)
    slopes = {name: grads[name].reshape(x.shape) for name, x in own.items()}
    new, states = rule(slopes, state["matrices"], own)
    others = {name: x for name, x in params.items() if name not in own}
    rest, vectors = method.vectors.update(
        {name: grads[name] for name in others}, state["vectors"], others, within(hyper, "vectors")
    )
    moved = {name: new[name].reshape(x.shape) if name in new else rest[name] for name, x in params.items()}
    return moved, {"matrices": states, "vectors": vectors}


C = TypeVar("C", bound=type)


def combined(cls: C) -> C:
    """A class with `form(self)`, the `preconditioned` that it is, with init and update: a decorator."""

    def init(self: Any, params: Named) -> State:
        """Of the combination."""
        state: State = self.form().init(params)
        return state

    def update(
        self: Any, grads: Named, state: State, params: Named, hyper: Named, **offers: Any
    ) -> tuple[Named, State]:
        """One step of the combination."""
        numbers = {"beta1" if name == "momentum" else name: value for name, value in hyper.items()}
        moved: tuple[Named, State] = self.form().update(grads, state, params, numbers, **offers)
        return moved

    def asks(self: Any) -> frozenset[str]:
        """What the combination asks for."""
        wanted: frozenset[str] = self.form().asks
        return wanted

    cls.init, cls.update, cls.asks = init, update, property(asks)  # type: ignore[attr-defined]
    return cls


def scaled(scale: Scale, x: Tensor) -> float:
    """The number of `Scale` for a matrix."""
    m, n = x.shape
    return {"rows": math.sqrt(max(1.0, m / n)), "rms": 0.2 * math.sqrt(max(m, n)), "none": 1.0}[scale]
