"""Dropout whose mask is a pure function of a key."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt import keys


class KeyedDropout(nn.Module):
    """Dropout with the mask `keys.uniform(dropout_key, *x.shape) >= p`, scaled by 1 / (1 - p).

    The key is a buffer, so that `torch.func.functional_call` can hand another one to every client of a cohort and to
    every step. With the batch as the first axis, the masks of the first samples do not depend on how many follow.

    The module alone draws nothing new: until `dropout_key` is replaced, every call has the same mask, and so have two
    calls of one module in a single forward pass.
    """

    dropout_key: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("dropout_key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = keys.uniform(self.dropout_key, *x.shape) >= self.p
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        return torch.where(kept, x * scale, torch.zeros_like(x))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def key_dropout(module: nn.Module) -> int:
    """Replace every `nn.Dropout` with p > 0 inside a module, in place, by `KeyedDropout`; returns how many.

    A dropout that stands in several places of the module becomes one for each place.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, KeyedDropout(child.p).train(child.training))
                replaced += 1
    return replaced
