"""Min-Max: the largest γ in closed form, the constraint itself, and its edges."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.min_max import largest, min_max
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Rows = list[list[float]]
KINDS = ("std", "unit", "sign")


def sq(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def mean_and_perturbation(rows: Rows, kind: str) -> tuple[list[float], list[float]]:
    columns = list(zip(*rows, strict=True))
    mean = [sum(column) / len(rows) for column in columns]
    if kind == "std":
        along = [
            -math.sqrt(sum((x - m) ** 2 for x in column) / len(rows)) for column, m in zip(columns, mean, strict=True)
        ]
    elif kind == "unit":
        length = math.sqrt(sum(m * m for m in mean))
        along = [-m / length for m in mean]
    else:
        along = [-1.0 if m > 0 else 1.0 for m in mean]
    return mean, along


def loop(rows: Rows, kind: str) -> list[float]:
    """The smallest of the positive roots of ‖μ + γ p - x_i‖² = D², one for each i."""
    mean, along = mean_and_perturbation(rows, kind)
    widest = max(sq(x, y) for x in rows for y in rows)
    square = sum(p * p for p in along)
    roots = []
    for row in rows:
        half = sum(p * (m - x) for p, m, x in zip(along, mean, row, strict=True))
        roots.append((-half + math.sqrt(half * half + square * (widest - sq(mean, row)))) / square)
    gamma = min(roots)
    return [m + gamma * p for m, p in zip(mean, along, strict=True)]


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
    for rows, b, kind in draws(12):
        got = min_max(torch.tensor(rows, dtype=torch.float64), b=b, perturbation=kind)  # type: ignore[arg-type]
        wanted = torch.tensor([loop(rows, kind)] * b, dtype=torch.float64)
        widest = math.sqrt(max(sq(x, y) for x in rows for y in rows))
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=4e-5 * widest)


def test_the_constraint_holds_and_one_percent_more_breaks_it() -> None:
    for rows, b, kind in draws(13):
        sent = min_max(torch.tensor(rows, dtype=torch.float64), b=b, perturbation=kind)[0].tolist()  # type: ignore[arg-type]
        mean, _ = mean_and_perturbation(rows, kind)
        further = [m + 1.01 * (x - m) for x, m in zip(sent, mean, strict=True)]
        widest = max(sq(x, y) for x in rows for y in rows)
        assert max(sq(sent, row) for row in rows) <= widest * (1 + 1e-12)
        assert max(sq(further, row) for row in rows) > widest


def test_two_honest_rows_on_a_line() -> None:
    # μ = 1, σ = 1, D = 2: down to 0 and no further, since then 2 is at distance 2
    honest = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    for kind in KINDS:
        assert float(min_max(honest, b=1, perturbation=kind)[0, 0]) == pytest.approx(0.0, abs=1e-4)  # type: ignore[arg-type]


def test_the_published_search() -> None:
    tried: list[float] = []

    def holds(gamma: float) -> bool:
        tried.append(gamma)
        return gamma <= 3.0

    assert largest(holds, 10.0, 0.3) == 2.8125
    # steps -5, -2.5, +1.25, -0.625, -0.3125
    assert tried == [10.0, 5.0, 2.5, 3.75, 3.125, 2.8125]
    assert largest(lambda gamma: True, 10.0, 1e-5) == pytest.approx(20.0, abs=1e-4)
    assert largest(lambda gamma: False, 10.0, 1e-5) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", [1, 9])
def test_without_room_the_mean_is_sent(kind: str, b: int) -> None:
    for honest in (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.1, 3.0]]).expand(4, 2), torch.zeros(3, 2)):
        sent = min_max(honest, b=b, perturbation=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(sent, honest[:1].expand(b, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_large_and_small_rows_stay_numbers(kind: str, dtype: torch.dtype, scale: float) -> None:
    honest = torch.tensor([[1.0, -1.0], [2.0, 1.0], [0.0, 3.0]], dtype=dtype)
    scaled = honest * scale
    before = scaled.clone()
    sent = min_max(scaled, b=5, perturbation=kind)  # type: ignore[arg-type]
    assert sent.dtype == dtype and torch.equal(scaled, before)
    torch.testing.assert_close(sent / scale, min_max(honest, b=5, perturbation=kind), rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]


def test_wide_rows_go_through_in_blocks() -> None:
    honest = torch.randn(5, 300_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sent = min_max(honest, b=1)[0]
    widest = float(torch.pdist(honest).max())
    reached = max(float((sent - row).norm()) for row in honest)
    assert reached == pytest.approx(widest, rel=1e-4) and reached <= widest * (1 + 1e-9)


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"min_max sees no honest update .* lower the share of attackers"):
        min_max(torch.zeros(0, 3), b=4)


def test_unknown_perturbations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"attack\.perturbation: should be 'std', 'unit' or 'sign'"):
        build("min_max", {"perturbation": "cos"})
