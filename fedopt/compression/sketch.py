"""Count sketch: entries added up in a few random cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression._counts import Count
from fedopt.compression._fields import Bits, Field, Floats
from fedopt.registry import declare
from fedopt.types import Named


@declare(
    reference="Charikar, Chen, Farach-Colton 2002, 'Finding Frequent Items in Data Streams', section 3; Rothchild,"
    " Panda, Ullah, Ivkin, Stoica, Braverman, Gonzalez, Arora 2020, 'FetchSGD: Communication-Efficient Federated"
    " Learning with Sketching'",
    kind=lambda estimate: "unbiased" if estimate == "mean" else "biased",
    error=lambda numel, rows, columns, estimate: (numel - 1) / columns / rows if estimate == "mean" else float("inf"),
    examples=({"columns": 50}, {"columns": 5, "rows": 1}, {"columns": 50, "rows": 5, "estimate": "median"}),
)
@dataclass(frozen=True)
class sketch:
    """A table of `rows` × `columns` sums of entries with random signs; an entry is estimated from its cells.

        S[r, h_r(i)] += s_r(i) xᵢ,    x̂ᵢ = mean (or median) over r of s_r(i) S[r, h_r(i)]

    Unbiased with the mean, E ‖x̂ - x‖² <= d / (rows · columns) ‖x‖²; with the median, large entries come out nearly
    whole whatever the others are. Sketches are linear: those of several clients with one seed can be added.

    On the wire, the seed of the h and s, and the table as float32.

    Differences from the paper: FetchSGD adds sketches up at the server and takes the largest entries of the sum; here
    each vector comes back by itself.
    """

    columns: Count
    rows: Count = 3
    estimate: Literal["mean", "median"] = "mean"

    def compress(self, x: Tensor, key: Tensor) -> Named:
        """`x [d]`; the key is the seed that travels."""
        x = x.to(torch.float32)
        cells, signs = self._places(key, x.shape[-1])
        table = x.new_zeros(self.rows, self.columns).scatter_add(1, cells, signs * x)
        return {"seed": key[None], "table": table.flatten()}

    def restore(self, code: Named, numel: int) -> Tensor:
        cells, signs = self._places(code["seed"][0], numel)
        found = code["table"].reshape(self.rows, self.columns).gather(1, cells) * signs
        if self.estimate == "mean":
            return found.mean(dim=0)
        ranked = found.sort(dim=0).values
        return (ranked[(self.rows - 1) // 2] + ranked[self.rows // 2]) / 2.0

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        return {"seed": (Bits(64), 1), "table": (Floats(), self.rows * self.columns)}

    def _places(self, key: Tensor, numel: int) -> tuple[Tensor, Tensor]:
        """Cell and sign of each entry in each row `[rows, d]`, from different bits of one random word."""
        words = keys.bits(key, self.rows, numel)
        cells = ((words >> 1) & ((1 << 62) - 1)).remainder(self.columns)
        return cells, 1.0 - 2.0 * (words & 1).to(torch.float32)
