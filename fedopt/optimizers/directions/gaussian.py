"""Normal directions, in all tensors or in some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Malladi et al. 2023, Fine-Tuning Language Models with Just Forward Passes, arXiv 2305.17333 (MeZO); "
    "LeZO, arXiv 2410.09823, for a share of the layers"
)
@dataclass(frozen=True)
class gaussian:
    """z ~ N(0, I); E (d/dt f(x + t z)) z = ∇ f(x), with the mean square error (d + 1) ‖∇ f‖².

    layers: the share of the tensors in which z is not 0, at least one, drawn anew each time.
    """

    layers: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0

    def draw(self, key: Tensor, params: Named) -> Named:
        number = len(params)
        kept = max(1, round(self.layers * number))
        rank = keys.permutation(keys.fold(key, "layers"), number)
        found = {}
        for i, (name, x) in enumerate(params.items()):
            z = keys.normal(keys.fold(key, name), *x.shape, dtype=x.dtype)
            found[name] = z if kept == number else z * (rank[i] < kept).to(x.dtype)
        return found


def like(key: Tensor, params: Named) -> Named:
    """Standard normal tensors of the same shapes."""
    return {name: keys.normal(keys.fold(key, name), *x.shape, dtype=x.dtype) for name, x in params.items()}


def length(z: Named) -> Tensor:
    """√⟨z, z⟩ over all tensors."""
    return torch.stack([x.square().sum() for x in z.values()]).sum().sqrt()
