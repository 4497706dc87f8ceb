"""Norms of a matrix, by the step that is steepest in each.

A norm is a frozen dataclass with, for matrices `[m, n]`,

    toward(list of Y) -> list of T    T = argmax ⟨Y, T⟩ over ‖T‖ <= 1, which is -LMO(Y)
    norm(X), dual(Y)                  ‖X‖, and ‖Y‖_* = max ⟨Y, T⟩ over ‖T‖ <= 1

A list, so that those of equal shapes can be worked on at once. `[optimizer] norm = { name = "spectral" }`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol, cast

import pydantic
from torch import Tensor

from fedopt.registry import ConfigError, Registry

registry = Registry("norms", __name__)


class Norm(Protocol):
    """See the module's text."""

    def toward(self, ys: list[Tensor]) -> list[Tensor]: ...
    def norm(self, x: Tensor) -> Tensor: ...
    def dual(self, y: Tensor) -> Tensor: ...


def parse(table: Any) -> Norm:
    """A name, or a table with a name and options, as the norm."""
    return cast(Norm, built(registry, table, "toward"))


def built(room: Registry, table: Any, method: str) -> Any:
    """What a name, or a table with a name and options, stands for; a component itself, as it is."""
    if hasattr(table, method):
        return table
    given = {"name": table} if isinstance(table, str) else table
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f"a name, or a table with a name, is needed; known: {', '.join(room.names())}")
    try:
        return room.build(given["name"], {n: v for n, v in given.items() if n != "name"}, room.room)
    except ConfigError as error:
        raise ValueError(str(error)) from None


Given = Annotated[Any, pydantic.PlainValidator(parse)]
"""The type of an option that is a norm."""
