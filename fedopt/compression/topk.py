"""Top-K: the entries of largest magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression._counts import Count, Share, check, kept
from fedopt.compression._fields import Field, Kept, Sparse
from fedopt.registry import declare
from fedopt.types import Named

LONG = 1 << 17
"""From this length on, one vector alone is searched through a sample of it first."""

SAMPLE = 1 << 16


@declare(
    reference="Aji, Heafield 2017, 'Sparse Communication for Distributed Gradient Descent', section 3; Stich,"
    " Cordonnier, Jaggi 2018, 'Sparsified SGD with Memory', definition 2.1",
    kind="contraction",
    error=lambda numel, count, share: 1.0 - kept(numel, count, share) / numel,
    zeros=True,
    examples=({"share": 0.1}, {"count": 1}, {"share": 0.9}),
)
@dataclass(frozen=True)
class topk:
    """The k entries of largest magnitude; the others are taken for 0. Of equal ones, those that stand first.

        ‖x - C(x)‖² <= (1 - k/d) ‖x‖²

    On the wire, the gaps between positions are Rice codes: log2 C(d, k) bits and a few percent.

    count, share: k, or k / d; one of them.

    Differences from the paper: none; magnitudes are compared over the whole vector, not within layers.
    """

    count: Count | None = None
    share: Share | None = None

    def __post_init__(self) -> None:
        check(self.count, self.share)

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key plays no part."""
        x = x.to(torch.float32)
        magnitudes, k = x.abs(), kept(x.shape[-1], self.count, self.share)
        least = magnitudes.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        above, equal = magnitudes > least, magnitudes == least
        missing = k - above.sum(dim=-1, keepdim=True)
        return {"kept": torch.where(above | (equal & (equal.cumsum(dim=-1) <= missing)), x, 0.0)}

    def alone(self, x: Tensor, key: Tensor) -> dict[str, Tensor | Kept]:
        """The same for one vector: a bound from a sample of it leaves few entries to look at closely."""
        d = x.numel()
        k = kept(d, self.count, self.share)
        if d < LONG or 8 * k > d or x.device.type != "cpu":
            return {**self.compress(x, key)}
        x = x.to(torch.float32)
        sample = x[:: d // SAMPLE].abs()
        expected = k / d * sample.numel()
        place = min(int(expected + 6.0 * expected**0.5 + 8.0), sample.numel())
        bound = sample.topk(place, sorted=False).values.min()
        # part by part, so that what is made on the way stays in the cache
        parts = [torch.nonzero(part.abs() >= bound).flatten() + LONG * i for i, part in enumerate(x.split(LONG))]
        near = torch.cat(parts)
        if near.numel() < k:
            return {**self.compress(x, key)}
        values = x[near]
        magnitudes = values.abs()
        least = magnitudes.topk(k, sorted=False).values.min()
        above, equal = magnitudes > least, magnitudes == least
        chosen = (above | (equal & (equal.cumsum(dim=0) <= k - above.sum()))) & (values != 0)
        return {"kept": Kept(near[chosen], values[chosen], d)}

    def restore(self, code: Mapping[str, Tensor | Kept], numel: int, out: Tensor | None = None) -> Tensor:
        found = code["kept"]
        return found.dense(out) if isinstance(found, Kept) else found

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"kept": (Sparse(), numel)}
