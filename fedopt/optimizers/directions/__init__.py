"""Directions in which zero-order optimizers look.

A kind of direction is a frozen dataclass with `draw(key, params) -> z`, named tensors of the parameters' shapes that
are a pure function of the key: they are drawn again wherever they are needed, and never kept.

`[optimizer] directions = { name = "gaussian", layers = 0.5 }`.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, cast

import pydantic
from torch import Tensor

from fedopt.optimizers.norms import built
from fedopt.registry import Registry
from fedopt.types import Named

registry = Registry("directions", __name__)


class Directions(Protocol):
    """See the module's text."""

    def draw(self, key: Tensor, params: Named) -> Named: ...


def parse(table: Any) -> Directions:
    """A name, or a table with a name and options, as the kind of directions."""
    return cast(Directions, built(registry, table, "draw"))


Given = Annotated[Any, pydantic.PlainValidator(parse)]
"""The type of an option that is a kind of directions."""
