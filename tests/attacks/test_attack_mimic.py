"""Mimic: who is copied, against the covariance matrix in plain loops."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.mimic import mimic
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Matrix = list[list[float]]


def leading(matrix: Matrix) -> list[float]:
    """Eigenvector of the largest eigenvalue, from a high power of the matrix by repeated squaring."""
    d = len(matrix)
    for _ in range(40):
        size = max(abs(entry) for row in matrix for entry in row)
        matrix = [[entry / size for entry in row] for row in matrix]
        matrix = [[sum(matrix[i][k] * matrix[k][j] for k in range(d)) for j in range(d)] for i in range(d)]
    # the power has rank one: any column that is not zero will do
    j = max(range(d), key=lambda j: sum(matrix[i][j] ** 2 for i in range(d)))
    return [matrix[i][j] for i in range(d)]


def loop(rows: Matrix) -> int:
    h, d = len(rows), len(rows[0])
    mean = [sum(row[j] for row in rows) / h for j in range(d)]
    covariance = [[sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in rows) / h for j in range(d)] for i in range(d)]
    v = leading(covariance)
    projections = [abs(sum(x * y for x, y in zip(v, row, strict=True))) for row in rows]
    return projections.index(max(projections))


def test_equals_the_loop_on_random_draws() -> None:
    draw, copied = random.Random(11), set()
    for _ in range(100):
        n, d = draw.randint(3, 20), draw.randint(1, 5)
        b = draw.randint(1, n - 2)
        scales = [10.0 / 3**j for j in range(d)]
        rows = [[draw.gauss(0.5, 1) * scale for scale in scales] for _ in range(n - b)]
        wanted = loop(rows)
        copied.add(wanted)
        got = mimic(torch.tensor(rows, dtype=torch.float64), b=b)
        assert got.tolist() == [rows[wanted]] * b
    assert len(copied) > 3


def test_the_direction_of_the_largest_variance_decides_and_not_the_length() -> None:
    # no covariance, and the first axis varies most; in it the third is furthest out, the fourth is the longest
    honest = torch.tensor([[1.0, 50.5], [-2.0, 49.0], [3.0, 49.5], [-1.0, 51.0]])
    assert mimic(honest, b=2).tolist() == [[3.0, 49.5]] * 2


def test_of_equals_the_first_is_copied() -> None:
    assert mimic(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), b=1).tolist() == [[-1.0, 0.0]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        # each row has its opposite further down, equally far out on the other side up to rounding
        half = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        copied = mimic(torch.cat([half, -half]), b=1)
        assert bool((half == copied).all(dim=1).any())
    assert mimic(torch.full((4, 2), 7.0), b=1).tolist() == [[7.0, 7.0]]
    assert mimic(torch.zeros(3, 2), b=1).tolist() == [[0.0, 0.0]]


def test_a_place_of_your_own() -> None:
    honest = torch.arange(6.0).reshape(3, 2)
    attack = build("mimic", {"row": 1})
    assert attack.vectors is not None
    assert attack.vectors(honest, 4, n=7).tolist() == [[2.0, 3.0]] * 4
    with pytest.raises(FedoptError, match=r"honest client 3, .* with 3 of them; set attack\.row to 2 at most"):
        mimic(honest, b=2, row=3)
    with pytest.raises(ConfigError, match=r"attack\.row"):
        build("mimic", {"row": -1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    honest = torch.tensor([[1e30, 0.0], [3e30, 1e29], [-1e30, 0.0]], dtype=dtype)
    sent = mimic(honest, b=9)
    assert torch.equal(sent, honest[1].expand(9, 2))
    sent.zero_()
    assert bool(honest[1].all())


def test_one_honest_client_is_copied_and_none_is_an_error() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(mimic(row, b=3), row.expand(3, 2))
    with pytest.raises(FedoptError, match=r"mimic sees no honest update .* lower the share of attackers"):
        mimic(torch.zeros(0, 3), b=4)
