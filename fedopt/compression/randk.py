"""Rand-K: k entries at random, which both ends know from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression._counts import Count, Share, check, kept
from fedopt.compression._fields import Bits, Field, Floats
from fedopt.registry import declare
from fedopt.types import Named


def _error(numel: int, count: int | None, share: float | None, scale: bool) -> float:
    k = kept(numel, count, share)
    return numel / k - 1.0 if scale else 1.0 - k / numel


@declare(
    reference="Konecny, McMahan, Yu, Richtarik, Suresh, Bacon 2016, 'Federated Learning: Strategies for Improving"
    " Communication Efficiency', section 3, random mask",
    kind=lambda scale: "unbiased" if scale else "contraction",
    error=_error,
    zeros=True,
    examples=({"share": 0.25}, {"count": 3}, {"share": 0.25, "scale": False}),
)
@dataclass(frozen=True)
class randk:
    """k of d entries, every choice equally likely; the others are taken for 0.

        C(x)ᵢ = (d/k) xᵢ for the chosen i, else 0;    E C(x) = x,    E ‖C(x) - x‖² = (d/k - 1) ‖x‖²

    On the wire, the seed of the choice (8 bytes) and k values; no positions.

    count, share: k, or k / d; one of them.
    scale: without the factor d/k it is a contraction, E ‖C(x) - x‖² = (1 - k/d) ‖x‖², and biased.

    Differences from the paper: it draws each entry by itself, so that their number varies.
    """

    count: Count | None = None
    share: Share | None = None
    scale: bool = True

    def __post_init__(self) -> None:
        check(self.count, self.share)

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key is the seed that travels."""
        seed = key[None]
        # in the words of `restore`, so that a traced client that also restores draws the places once
        return {"seed": seed, "values": x.to(torch.float32)[self._chosen(seed[0], x.shape[-1])]}

    def restore(self, code: Named, numel: int) -> Tensor:
        values = code["values"]
        if self.scale:
            values = values * (numel / max(values.shape[-1], 1))
        return values.new_zeros(numel).scatter(0, self._chosen(code["seed"][0], numel), values)

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"seed": (Bits(64), 1), "values": (Floats(), self._k(numel))}

    def _k(self, numel: int) -> int:
        return kept(numel, self.count, self.share)

    def _chosen(self, key: Tensor, numel: int) -> Tensor:
        """The largest k of d random words: different places, and any k of them as likely as others."""
        return keys.bits(key, numel).topk(self._k(numel), sorted=False).indices.sort().values
