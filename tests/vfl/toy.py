"""The small ridge problem of the verification figures, split by columns over parties."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedopt.data import Federation, Shards, Split
from fedopt.models.logistic import logistic
from fedopt.problem import Network, Problem, squares

LAM = 0.1


class Toy(NamedTuple):
    """A x against b, ridge with `lam`; `x` is the solution in closed form, in the order of the columns."""

    problem: Problem
    a: Tensor
    b: Tensor
    x: Tensor
    width: int
    """Columns of each party, padding included."""
    blocks: list[Tensor]
    """Columns of each party."""
    lam: float = LAM

    @property
    def y(self) -> Tensor:
        """The multipliers at the solution, A x - b."""
        return self.a @ self.x - self.b

    def weights(self, held: Tensor) -> Tensor:
        """All weights `[d]` from the parties' `[n, width]`."""
        found = torch.empty_like(self.x)
        for columns, mine in zip(self.blocks, held, strict=True):
            found[columns] = mine[: columns.numel()]
            assert bool((mine[columns.numel() :] == 0).all()), "padding moved"
        return found

    def gap(self, held: Tensor) -> float:
        """(f(x) - f*) / (f(0) - f*)."""

        def f(x: Tensor) -> float:
            return float(0.5 * (self.a @ x - self.b).square().sum() + 0.5 * self.lam * x.square().sum())

        return (f(self.weights(held)) - f(self.x)) / (f(torch.zeros_like(self.x)) - f(self.x))


def toy(
    parties: int = 4,
    *,
    people: int = 60,
    features: int = 20,
    factor: float = 1.0,
    cut: str = "even",
    decay: float = 0.9,
    lam: float = LAM,
    mean: bool = False,
) -> Toy:
    """A = N(0, 1) with columns scaled by decay^j and by `factor`; b = A x_true + 0.1 noise; both / √m with `mean`."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((people, features)) * decay ** np.arange(features)
    b = a @ rng.standard_normal(features) + 0.1 * rng.standard_normal(people)
    a, b = factor * torch.from_numpy(a), torch.from_numpy(b)
    if mean:
        a, b = a / people**0.5, b / people**0.5
    solution = torch.linalg.solve(a.T @ a + lam * torch.eye(features, dtype=a.dtype), a.T @ b)
    order = torch.arange(features) if cut == "even" else torch.from_numpy(rng.permutation(features))
    blocks = list(torch.tensor_split(order, parties))
    if cut == "uneven":
        blocks = list(order.split([1, 2, features - 3]))
    return Toy(vertical(a, b, blocks), a, b, solution, max(map(len, blocks)), blocks, lam)


def vertical(a: Tensor, b: Tensor, blocks: list[Tensor]) -> Problem:
    """A regression whose columns are with parties, padded to the widest."""
    people, width = a.shape[0], max(map(len, blocks))
    x = torch.zeros(len(blocks) * people, width, dtype=a.dtype)
    for i, columns in enumerate(blocks):
        x[i * people : (i + 1) * people, : len(columns)] = a[:, columns]
    rows = torch.arange(len(blocks) * people)
    offsets = people * torch.arange(len(blocks) + 1)
    shards = Shards(x, rows, torch.zeros(len(rows), dtype=torch.int64), offsets)
    data = Federation({"train": shards}, {"train": Split(a[:, :0], b)}, (), task="regression")
    module = logistic(inputs=(width,), classes=1, bias=False).to(a.dtype)
    network, initial = Network.of(module)
    return Problem(network, data, squares, {"params": torch.zeros_like(initial["params"])})
