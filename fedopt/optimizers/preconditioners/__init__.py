"""Preconditioners of a matrix: what is done to a gradient before the norm's step, and to the step after it.

With an invertible map P, ‖X‖_P = ‖P X‖ has the steepest step LMO_P(G) = P⁻¹ LMO(P⁻ᵀ G); P X = L X R for two sides, and
D ∘ X entry by entry (Veprikov et al. 2025, arXiv 2510.10777, theorem 2.3). A preconditioner is a frozen dataclass with,
for a matrix `[m, n]`,

    init(x) -> state
    update(state, g) -> state         statistics of the gradients; one that `asks` for `factors` gets them, too
    at(state) -> at                   what both maps need of it, found once
    inward(at, y)                     P⁻ᵀ y
    outward(at, t)                    P⁻¹ t

`[optimizer] preconditioner = { name = "shampoo" }`.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, cast

import pydantic
from torch import Tensor

from fedopt.optimizers.norms import built
from fedopt.registry import Registry
from fedopt.types import Named

registry = Registry("preconditioners", __name__)


class Preconditioner(Protocol):
    """See the module's text."""

    def init(self, x: Tensor) -> Named: ...
    def update(self, state: Named, g: Tensor, **offers: Any) -> Named: ...
    def at(self, state: Named) -> Named: ...
    def inward(self, at: Named, y: Tensor) -> Tensor: ...
    def outward(self, at: Named, t: Tensor) -> Tensor: ...


def parse(table: Any) -> Preconditioner:
    """A name, or a table with a name and options, as the preconditioner."""
    return cast(Preconditioner, built(registry, table, "inward"))


Given = Annotated[Any, pydantic.PlainValidator(parse)]
"""The type of an option that is a preconditioner."""
