"""Fang's attack on the trimmed mean: the intervals in plain loops, and what it does to the rule."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.fang_trimmed_mean import fang_trimmed_mean
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def interval(column: list[float], reach: float) -> tuple[float, float]:
    """From the honest extreme to the far end; which of the four cases it is follows from two signs."""
    if sum(column) > 0:
        low = min(column)
        return (low, low / reach) if low > 0 else (low, reach * low)
    high = max(column)
    return (high, reach * high) if high > 0 else (high, high / reach)


def test_equals_the_loop_on_random_draws() -> None:
    draw, cases = random.Random(18), set()
    for seed in range(100):
        n, d = draw.randint(2, 15), draw.randint(1, 6)
        b, reach = draw.randint(1, n - 1), draw.uniform(1.1, 5)
        centre = [draw.uniform(-3, 3) for _ in range(d)]
        honest = [[draw.gauss(c, 1) for c in centre] for _ in range(n - b)]
        got = fang_trimmed_mean(
            torch.tensor(honest, dtype=torch.float64), b=b, key=keys.root(seed), reach=reach
        ).tolist()
        u = keys.uniform(keys.root(seed), b, d, dtype=torch.float64).tolist()
        for j, column in enumerate(zip(*honest, strict=True)):
            start, end = interval(list(column), reach)
            cases.add((sum(column) > 0, start > 0))
            for i in range(b):
                assert got[i][j] == pytest.approx(start + u[i][j] * (end - start), rel=1e-12, abs=1e-12)
    assert len(cases) == 4


def test_a_trimmed_mean_moves_to_the_wrong_side_of_the_honest_mean() -> None:
    honest = torch.randn(7, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b, mean = 3, honest.mean(0)
    every = torch.cat([honest, fang_trimmed_mean(honest, b=b, key=keys.root(0))]).sort(0).values
    moved = every[b : 10 - b].mean(0)
    assert bool(((moved - mean) * mean.sign() < 0).all())


def test_attackers_differ_and_fill_the_interval() -> None:
    honest = torch.tensor([[1.0], [2.0]]).expand(2, 10_000)
    sent = fang_trimmed_mean(honest, b=2, key=keys.root(1))
    assert not torch.equal(sent[0], sent[1])
    assert float(sent.min()) == pytest.approx(0.5, abs=1e-3) and float(sent.max()) == pytest.approx(1.0, abs=1e-3)
    assert float(sent.mean()) == pytest.approx(0.75, abs=0.01)
    assert not torch.equal(fang_trimmed_mean(honest, b=2, key=keys.root(2)), sent)


def test_torch_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    fang_trimmed_mean(torch.ones(2, 3), b=2, key=keys.root(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b", [1, 9])
def test_large_rows_stay_numbers(dtype: torch.dtype, b: int) -> None:
    honest = torch.tensor([[1e30, -1e30, 0.0], [2e30, -3e30, 0.0]], dtype=dtype)
    before = honest.clone()
    sent = fang_trimmed_mean(honest, b=b, key=keys.root(0))
    assert bool(sent.isfinite().all()) and sent.dtype == dtype and torch.equal(honest, before)
    assert not bool(sent[:, 2].any())


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"fang_trimmed_mean sees no honest update .* lower the share of attackers"):
        fang_trimmed_mean(torch.zeros(0, 3), b=4, key=keys.root(0))
    with pytest.raises(ConfigError, match=r"attack\.reach: should be greater than 1"):
        build("fang_trimmed_mean", {"reach": 1.0})
