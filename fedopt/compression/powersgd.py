"""PowerSGD: layers as products of two thin matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression._counts import Count
from fedopt.compression._fields import Field, Floats
from fedopt.registry import declare
from fedopt.types import Named


class Part(NamedTuple):
    """A tensor of the model within the vector: its place, and the matrix it is taken for; `rank` 0 is sent whole."""

    start: int
    stop: int
    rows: int
    columns: int
    rank: int


@declare(
    reference="Vogels, Karimireddy, Jaggi 2019, 'PowerSGD: Practical Low-Rank Gradient Compression for Distributed"
    " Optimization', algorithm 1",
    kind="contraction",
    examples=({"rank": 1, "shapes": ((20, 30), (30,), (2, 5, 7))}, {"rank": 4}, {"warm": False, "shapes": ((30, 30),)}),
)
@dataclass(frozen=True)
class powersgd:
    """One step of a power iteration from the last factor finds a matrix of low rank near each layer.

        P = M Q,  P̂ = orthonormal columns of P,  Q' = Mᵀ P̂,    C(M) = P̂ Q'ᵀ,    and Q = Q' the next time

    C(M) = P̂ P̂ᵀ M is a projection, so ‖C(M) - M‖ <= ‖M‖; with the same M again and again it comes to the best matrix of
    that rank. Tensors of one dimension, and those that would not become smaller, are sent whole.

    On the wire, P̂ and Q' as float32.

    rank: columns of P and Q.
    warm: start from the last Q'; otherwise from a random one each time.
    shapes: of the tensors that make up the vector, those of the model by default; a tensor [a, b, c ...] is taken for a
        matrix [a, b c ...]. Without any, and for a vector of another length, it is one nearly square matrix.

    Differences from the paper: P̂ and Q' are each client's own, where the paper averages P and then Q' over all workers
    within an iteration, which takes two rounds; and the first Q is the same for all.
    """

    rank: Count = 2
    warm: bool = True
    shapes: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if any(size < 1 for shape in self.shapes or () for size in shape):
            raise ValueError(f"shapes of tensors with entries are needed, {self.shapes} were given")

    def start(self, numel: int) -> Named:
        """Random factors, the same in every run."""
        return self._random(keys.fold(keys.root(0), "powersgd"), numel)

    def after(self, code: Named, numel: int) -> Named:
        return {name: value for name, value in code.items() if name.startswith("q")}

    def compress(self, x: Tensor, key: Tensor, *, kept: Named) -> Named:
        """`x [d]` and the last factors; the key draws new ones where they do not stay."""
        x = x.to(torch.float32)
        starts = kept if self.warm else self._random(key, x.shape[-1])
        whole: list[Tensor] = [x[:0]]
        code: dict[str, Tensor] = {}
        for i, part in enumerate(self._parts(x.shape[-1])):
            piece = x[part.start : part.stop]
            if not part.rank:
                whole.append(piece)
                continue
            matrix = torch.nn.functional.pad(piece, (0, part.rows * part.columns - len(piece)))
            matrix = matrix.reshape(part.rows, part.columns)
            p = _orthonormal(_scaled(matrix) @ self._begun(starts[f"q{i}"], part, keys.fold(key, i)))
            code |= {f"p{i}": p.flatten(), f"q{i}": (matrix.T @ p).flatten()}
        return {"whole": torch.cat(whole), **code}

    def restore(self, code: Named, numel: int) -> Tensor:
        pieces, at = [], 0
        for i, part in enumerate(self._parts(numel)):
            length = part.stop - part.start
            if part.rank:
                p = code[f"p{i}"].reshape(part.rows, part.rank)
                pieces.append((p @ code[f"q{i}"].reshape(part.columns, part.rank).T).flatten()[:length])
            else:
                pieces.append(code["whole"][at : at + length])
                at += length
        return torch.cat(pieces)

    def layout(self, numel: int) -> dict[str, tuple[Field, int]]:
        parts = self._parts(numel)
        found: dict[str, tuple[Field, int]] = {
            "whole": (Floats(), sum(part.stop - part.start for part in parts if not part.rank))
        }
        for i, part in enumerate(parts):
            if part.rank:
                found |= {f"p{i}": (Floats(), part.rows * part.rank), f"q{i}": (Floats(), part.columns * part.rank)}
        return found

    def _begun(self, q: Tensor, part: Part, key: Tensor) -> Tensor:
        """The factor to begin with `[columns, rank]`, of no particular size; columns that are 0 are drawn anew."""
        q = q.reshape(part.columns, part.rank)
        q = q / torch.where(q == 0, 1.0, q.abs()).amax(dim=0)
        fresh = keys.normal(key, part.columns * part.rank).reshape(part.columns, part.rank)
        return torch.where((q == 0).all(dim=0), fresh, q)

    def _parts(self, numel: int) -> list[Part]:
        shapes = self.shapes
        if shapes is None or sum(math.prod(shape) for shape in shapes) != numel:
            rows = math.isqrt(max(numel, 1))
            return [self._part(0, numel, rows, -(-numel // rows))]
        parts, at = [], 0
        for shape in shapes:
            length = math.prod(shape)
            rows = shape[0] if len(shape) > 1 else 1
            parts.append(self._part(at, at + length, rows, length // max(rows, 1)))
            at += length
        return parts

    def _part(self, start: int, stop: int, rows: int, columns: int) -> Part:
        pays = self.rank * (rows + columns) < stop - start
        return Part(start, stop, rows, columns, self.rank if pays else 0)

    def _random(self, key: Tensor, numel: int) -> Named:
        return {
            f"q{i}": keys.normal(keys.fold(key, i), part.columns * part.rank)
            for i, part in enumerate(self._parts(numel))
            if part.rank
        }


def _scaled(matrix: Tensor) -> Tensor:
    """The matrix with a largest magnitude of 1, so that products stay within float32."""
    most = matrix.abs().amax()
    return matrix / torch.where(most > 0, most, 1.0)


def _orthonormal(p: Tensor) -> Tensor:
    """Columns of `p [n, r]` made orthogonal and of length 1, one after another; one that is left with nothing is 0."""
    columns: list[Tensor] = []
    for column in p.unbind(dim=1):
        length = column.norm()
        for _ in range(2):  # once more, against what rounding left
            for other in columns:
                column = column - (other * column).sum() * other
        rest = column.norm()
        # what is left of a column that the others span is rounding alone
        columns.append(torch.where(rest > 1e-6 * length, column / torch.where(rest > 0, rest, 1.0), 0.0))
    return torch.stack(columns, dim=1)
