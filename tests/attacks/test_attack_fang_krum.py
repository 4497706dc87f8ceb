"""Fang's attack on Krum: against Krum and the halving search in plain loops."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.fang_krum import fang_krum
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Rows = list[list[float]]


def sq(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def krum(rows: Rows, f: int) -> int:
    """Row with the smallest sum of squared distances to its n - f - 2 nearest others; of equals the first."""
    n, scores = len(rows), []
    for i in range(n):
        others = sorted(sq(rows[i], rows[j]) for j in range(n) if j != i)
        scores.append(sum(others[: max(n - f - 2, 1)]))
    return scores.index(min(scores))


def bound(honest: Rows, b: int) -> float:
    h, d = len(honest), len(honest[0])
    n, near = h + b, max(h - 2, 1)
    nearest = min(sum(sorted(sq(honest[i], honest[j]) for j in range(h) if j != i)[:near]) for i in range(h))
    furthest = max(math.sqrt(sum(x * x for x in row)) for row in honest)
    return math.sqrt(nearest / (max(n - 2 * b - 1, 1) * d)) + furthest / math.sqrt(d)


def loop(honest: Rows, b: int, tolerance: float) -> list[float]:
    d = len(honest[0])
    mean = [sum(row[j] for row in honest) / len(honest) for j in range(d)]
    signs = [(m > 0) - (m < 0) for m in mean]
    most = step = bound(honest, b)
    while step > tolerance * most:
        sent = [-step * s for s in signs]
        # honest rows stand first, so that a tie is lost
        if krum([*honest, *[sent] * b], b) >= len(honest):
            break
        step /= 2
    return [-step * s for s in signs]


def test_equals_the_loop_on_random_draws() -> None:
    draw, won = random.Random(16), 0
    for _ in range(100):
        n, d = draw.randint(2, 16), draw.randint(1, 6)
        b = draw.randint(1, n - 1)
        tolerance = draw.choice([1e-5, 1e-2])
        honest = [[draw.gauss(0.3, 1) * 10 for _ in range(d)] for _ in range(n - b)]
        wanted = loop(honest, b, tolerance)
        won += krum([*honest, *[wanted] * b], b) >= len(honest)
        got = fang_krum(torch.tensor(honest, dtype=torch.float64), b=b, tolerance=tolerance)
        torch.testing.assert_close(got, torch.tensor([wanted] * b, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert 20 < won < 80, "the search has to end in success and in failure to be compared in both"


def test_krum_takes_the_largest_step_of_the_sequence() -> None:
    draw = random.Random(17)
    for _ in range(20):
        b, d = 4, 20
        honest = [[draw.gauss(0.5, 1) for _ in range(d)] for _ in range(7)]
        sent = fang_krum(torch.tensor(honest, dtype=torch.float64), b=b)[0].tolist()
        assert krum([*honest, *[sent] * b], b) >= 7
        doubled = [2 * x for x in sent]
        assert krum([*honest, *[doubled] * b], b) < 7 or max(map(abs, doubled)) > bound(honest, b)
        mean = [sum(column) / 7 for column in zip(*honest, strict=True)]
        assert all(x * m < 0 for x, m in zip(sent, mean, strict=True)), "against the sign of the mean everywhere"


def test_a_majority_of_attackers_is_chosen_at_the_first_try() -> None:
    # h - 2 <= b - 1: attackers who agree have a score of 0
    honest = [[1.0, 2.0], [2.0, 1.0], [1.5, 1.0], [1.0, 1.2]]
    sent = fang_krum(torch.tensor(honest, dtype=torch.float64), b=6)
    assert sent[0].tolist() == pytest.approx([-bound(honest, 6)] * 2)


@pytest.mark.parametrize("b", [1, 9])
def test_few_or_equal_honest_rows(b: int) -> None:
    for honest in (torch.tensor([[1.0, -2.0]]), torch.ones(2, 2), torch.ones(4, 2), torch.zeros(3, 2)):
        sent = fang_krum(honest, b=b)
        assert sent.shape == (b, 2) and bool(sent.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_large_and_small_rows_stay_numbers(dtype: torch.dtype, scale: float) -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.5
    scaled = honest * scale
    before = scaled.clone()
    sent = fang_krum(scaled, b=3)
    assert sent.dtype == dtype and torch.equal(scaled, before)
    torch.testing.assert_close(sent / scale, fang_krum(honest, b=3))


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"fang_krum sees no honest update .* lower the share of attackers"):
        fang_krum(torch.zeros(0, 3), b=4)
    with pytest.raises(ConfigError, match=r"attack\.tolerance: should be greater than 0"):
        build("fang_krum", {"tolerance": 0.0})
