"""The one seam between vectors and models: named tensors <-> one flat vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.types import Named


class FlatSpec(NamedTuple):
    """Names and shapes of the tensors that make up one flat vector, in order, and the dtype of that vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls, named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
    ) -> FlatSpec:
        items = list(named.items() if isinstance(named, Mapping) else named)
        if dtype is None:
            dtype = items[0][1].dtype if items else torch.get_default_dtype()
        return cls(tuple(n for n, _ in items), tuple(tuple(t.shape) for _, t in items), dtype)

    @property
    def numels(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def numel(self) -> int:
        return sum(self.numels)

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Named tensors -> `[d]`. Works under vmap."""
        if not self.names:
            return torch.zeros(0, dtype=self.dtype)
        return torch.cat([named[name].reshape(-1) for name in self.names]).to(self.dtype)

    def unflatten(self, vector: Tensor) -> Named:
        """`[d]` -> named tensors, views where torch can give views. Works under vmap."""
        if vector.shape[-1:] != (self.numel,):
            raise ValueError(
                f"a vector of {self.numel} entries was needed, one of shape {tuple(vector.shape)} was given"
            )
        parts = vector.split(self.numels, dim=-1) if self.names else ()
        return {n: p.reshape(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}
