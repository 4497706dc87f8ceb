"""Min-Sum: the largest γ in closed form, the constraint itself, and its edges."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks.min_max import min_max
from fedopt.attacks.min_sum import min_sum
from fedopt.types import FedoptError

Rows = list[list[float]]
KINDS = ("std", "unit", "sign")


def sq(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def mean_of(rows: Rows) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def loop(rows: Rows, kind: str) -> list[float]:
    """Since Σ_i ‖v - x_i‖² = h ‖v - μ‖² + Σ_i ‖μ - x_i‖², the length of γ p is the largest ‖x_i - μ‖."""
    mean = mean_of(rows)
    if kind == "unit":
        along = [-m for m in mean]
    elif kind == "sign":
        along = [-math.copysign(1.0, m) for m in mean]
    else:
        along = [-math.sqrt(sum((row[j] - mean[j]) ** 2 for row in rows)) for j in range(len(mean))]
    length = math.sqrt(sum(p * p for p in along))
    radius = math.sqrt(max(sq(row, mean) for row in rows))
    return [m + radius * p / length for m, p in zip(mean, along, strict=True)]


def draws(seed: int) -> list[tuple[Rows, int, str]]:
    draw, found = random.Random(seed), []
    for _ in range(100):
        n, d = draw.randint(3, 20), draw.randint(1, 5)
        b = draw.randint(1, n - 2)
        scale = 10 ** draw.uniform(-4, 4)
        rows = [[draw.gauss(1, 3) * scale for _ in range(d)] for _ in range(n - b)]
        found.append((rows, b, draw.choice(KINDS)))
    return found


def test_equals_the_closed_form_on_random_draws_at_any_scale() -> None:
    for rows, b, kind in draws(14):
        got = min_sum(torch.tensor(rows, dtype=torch.float64), b=b, perturbation=kind)  # type: ignore[arg-type]
        wanted = torch.tensor([loop(rows, kind)] * b, dtype=torch.float64)
        widest = math.sqrt(max(sq(x, y) for x in rows for y in rows))
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=4e-5 * widest)


def test_the_constraint_holds_and_one_percent_more_breaks_it() -> None:
    for rows, b, kind in draws(15):
        sent = min_sum(torch.tensor(rows, dtype=torch.float64), b=b, perturbation=kind)[0].tolist()  # type: ignore[arg-type]
        further = [m + 1.01 * (x - m) for x, m in zip(sent, mean_of(rows), strict=True)]
        most = max(sum(sq(x, y) for y in rows) for x in rows)
        assert sum(sq(sent, row) for row in rows) <= most * (1 + 1e-12)
        assert sum(sq(further, row) for row in rows) > most


def test_it_is_no_bolder_than_min_max() -> None:
    # in many dimensions ‖x_i - μ‖² is about (1 - 1/h) d and D² about 2 d, so the sum is the tighter bound
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        honest = torch.randn(8, 1000, generator=generator, dtype=torch.float64)
        mean = honest.mean(0)
        assert float((min_sum(honest, b=1)[0] - mean).norm()) < float((min_max(honest, b=1)[0] - mean).norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [1, 9])
def test_without_room_the_mean_is_sent(kind: str, b: int) -> None:
    for honest in (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.1, 3.0]]).expand(4, 2), torch.zeros(3, 2)):
        sent = min_sum(honest, b=b, perturbation=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(sent, honest[:1].expand(b, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    honest = torch.tensor([[1e30, -1e30], [2e30, 1e30], [0.0, 3e30]], dtype=dtype)
    before = honest.clone()
    sent = min_sum(honest, b=5)
    assert sent.dtype == dtype and torch.equal(honest, before)
    torch.testing.assert_close(sent / 1e30, min_sum(honest / 1e30, b=5), rtol=1e-3, atol=1e-3)


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"min_sum sees no honest update .* lower the share of attackers"):
        min_sum(torch.zeros(0, 3), b=4)
