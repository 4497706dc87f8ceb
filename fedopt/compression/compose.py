"""One codec after another."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fedopt import keys
from fedopt.compression import OFFERS, promised, registry, stated
from fedopt.compression._fields import Field
from fedopt.registry import declare
from fedopt.types import Named


def _part(table: dict[str, Any], which: str) -> Any:
    options = {name: value for name, value in table.items() if name != "name"}
    if not isinstance(table.get("name"), str):
        raise ValueError(f"{which} needs a name, e.g. {which} = {{ name = 'topk', share = 0.01 }}")
    return registry.build(table["name"], options, f"compression.{which}")


def _kind(first: dict[str, Any], then: dict[str, Any]) -> str:
    kinds = {stated(_part(first, "first"), "kind"), stated(_part(then, "then"), "kind")}
    if kinds <= {"exact", "unbiased"}:
        return "unbiased" if "unbiased" in kinds else "exact"
    return "contraction" if kinds == {"exact", "contraction"} else "biased"


def _error(numel: int, first: dict[str, Any], then: dict[str, Any]) -> float | None:
    """E ‖D(C(x)) - x‖² <= ω_D E ‖C(x)‖² + ω_C ‖x‖², and E ‖C(x)‖² <= (1 + ω_C) ‖x‖², where both are unbiased."""
    if _kind(first, then) == "biased":
        return None
    errors = []
    for which, table in (("first", first), ("then", then)):
        part = _part(table, which)
        errors.append(0.0 if stated(part, "kind") == "exact" else promised(part, numel))
    one, other = errors
    return None if one is None or other is None else one + other + one * other


@declare(
    reference="Basu, Data, Karakus, Diggavi 2019, 'Qsparse-local-SGD: Distributed SGD with Quantization, Sparsification"
    " and Local Computations', section 2",
    kind=_kind,
    error=_error,
    zeros=lambda first: bool(stated(_part(first, "first"), "zeros", False)),
    examples=(
        {"first": {"name": "topk", "share": 0.2}, "then": {"name": "qsgd", "bucket": 16}},
        {"first": {"name": "randk", "share": 0.5}, "then": {"name": "natural"}},
        {"first": {"name": "topk", "share": 0.2}, "then": {"name": "fp16"}},
    ),
)
@dataclass(frozen=True)
class compose:
    """C(x) = second(first(x)): Top-K and then a quantiser, say. The bytes are those of the second.

    What the first leaves 0 has to stay 0 under the second, whose wire form then has few entries to write.

    first, then: tables with a name and options.

    Differences from the paper: the second sees the whole vector with its zeros, so its buckets are those of positions,
    not of the entries that were kept.
    """

    first: dict[str, Any]
    then: dict[str, Any]

    def __post_init__(self) -> None:
        for part, table in zip(self._parts, (self.first, self.then), strict=True):
            if named := set(OFFERS) & inspect.signature(part.compress).parameters.keys():
                raise ValueError(
                    f"{table['name']} needs {', '.join(sorted(named))}, which a part of compose does not get"
                )
        if not stated(self._parts[1], "zeros", False):
            raise ValueError(f"{self.then['name']} turns 0 into something else; compose needs a second that keeps 0")

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        return _part(self.first, "first"), _part(self.then, "then")

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; each of the two has a key of its own."""
        first, then = self._parts
        code: Named = then.compress(first.restore(first.compress(x, keys.fold(key, 0)), x.shape[-1]), keys.fold(key, 1))
        return code

    def alone(self, x: Tensor, key: Tensor) -> dict[str, Any]:
        """The same by the faster ways that parts have for one vector."""
        first, then = (getattr(part, "alone", part.compress) for part in self._parts)
        code: dict[str, Any] = then(self._parts[0].restore(first(x, keys.fold(key, 0)), x.shape[-1]), keys.fold(key, 1))
        return code

    def restore(self, code: Named, numel: int) -> Tensor:
        restored: Tensor = self._parts[1].restore(code, numel)
        return restored

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        found: dict[str, tuple[Field, int]] = self._parts[1].layout(numel)
        return found
