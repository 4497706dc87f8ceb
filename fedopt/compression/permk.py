"""PermK: the clients of an exchange share out the coordinates between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression._counts import Count
from fedopt.compression._fields import Bits, Field, Floats
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Szlendak, Tyurin, Richtarik 2022, 'Permutation Compressors for Provably Faster Distributed Nonconvex"
    " Optimization', definition 2",
    kind="unbiased",
    error=lambda numel, n: n - 1.0,
    zeros=True,
    examples=({"n": 3}, {"n": 1}),
)
@dataclass(frozen=True)
class permk:
    """Client i of n sends the coordinates that stand in the i-th part of a common random order, n times as large.

        C_i(x)_j = n x_j for j in part i of the order, else 0;    Σᵢ C_i(x) / n = x where all x are the same

    The parts do not overlap, so the mean over all n clients is exact where their vectors agree, and its error is that
    of their differences alone.

    On the wire, the seed of the order, the client's place, and ⌈d/n⌉ values.

    n: clients in the exchange; a client's place is the engine's offer `rank`, modulo n.

    Differences from the paper: where n does not divide d, n ⌈d/n⌉ places are put in order, of which those beyond d are
    nobody's, so that each coordinate is with each client equally often.
    """

    n: Count

    def compress(self, x: Tensor, key: Tensor, *, shared: Tensor, rank: Tensor) -> Named:
        """`x [d]`, the key of the exchange and the client's place."""
        x = x.to(torch.float32)
        rank = rank.remainder(self.n)
        return {"seed": shared[None], "rank": rank[None], "values": self._padded(x)[self._mine(shared, rank, len(x))]}

    def restore(self, code: Named, numel: int) -> Tensor:
        mine = self._mine(code["seed"][0], code["rank"][0].remainder(self.n), numel)
        return code["values"].new_zeros(numel + 1).scatter(0, mine, code["values"] * self.n)[:numel]

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"seed": (Bits(64), 1), "rank": (Bits(32), 1), "values": (Floats(), -(-numel // self.n))}

    def _mine(self, shared: Tensor, rank: Tensor, numel: int) -> Tensor:
        """The coordinates of this client `[⌈d/n⌉]`; d, which is none, for places beyond it."""
        size = -(-numel // self.n)
        order = keys.permutation(shared, size * self.n).clamp(max=numel)
        return order.gather(0, rank * size + torch.arange(size, device=order.device))

    def _padded(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 1))
