"""Gaussian noise against an oracle that knows nothing of tensors, and its distribution."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.gaussian import gaussian
from fedopt.registry import ConfigError

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    z &= WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def folded(key: int, part: int) -> int:
    return mixed(mixed(key + GOLDEN) ^ ((part * GOLDEN) & WORD))


def uniforms(key: int, count: int) -> list[float]:
    start = mixed(key + GOLDEN)
    return [(mixed(start + c * GOLDEN) >> 11) * 2.0**-53 for c in range(1, count + 1)]


def loop(own: list[list[float]], seed: int, sigma: float, around: str) -> list[list[float]]:
    b, d, root = len(own), len(own[0]), mixed(seed + GOLDEN)
    radius, angle = uniforms(folded(root, 0), b * d), uniforms(folded(root, 1), b * d)
    sent = []
    for i in range(b):
        row = []
        for j in range(d):
            at = i * d + j
            epsilon = math.sqrt(-2 * math.log(1 - radius[at])) * math.cos(2 * math.pi * angle[at])
            row.append((own[i][j] if around == "own" else 0.0) + sigma * epsilon)
        sent.append(row)
    return sent


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(5)
    for seed in range(100):
        b, d = draw.randint(1, 6), draw.randint(1, 6)
        sigma, around = draw.uniform(0.01, 200), draw.choice(["zero", "own"])
        own = [[draw.gauss(0, 3) for _ in range(d)] for _ in range(b)]
        got = gaussian(torch.tensor(own, dtype=torch.float64), key=keys.root(seed), sigma=sigma, around=around)  # type: ignore[arg-type]
        wanted = torch.tensor(loop(own, seed, sigma, around), dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_mean_and_deviation() -> None:
    sent = gaussian(torch.full((2, 50_000), 7.0), key=keys.root(0), sigma=3.0, around="own")
    assert float(sent.mean()) == pytest.approx(7.0, abs=5 * 3 / math.sqrt(1e5))
    assert float(sent.std()) == pytest.approx(3.0, rel=0.02)
    assert abs(float(torch.corrcoef(sent)[0, 1])) < 5 / math.sqrt(5e4)


def test_a_row_does_not_depend_on_how_many_attackers_there_are() -> None:
    own = torch.zeros(5, 3)
    many = gaussian(own, key=keys.root(1))
    assert torch.equal(gaussian(own[:2], key=keys.root(1)), many[:2])
    assert not torch.equal(gaussian(own, key=keys.root(2)), many)


def test_torch_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    gaussian(torch.zeros(2, 3), key=keys.root(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    own = torch.full((3, 4), 1e30, dtype=dtype)
    sent = gaussian(own, key=keys.root(3), sigma=1e30, around="own")
    assert bool(sent.isfinite().all()) and sent.dtype == dtype and bool((own == 1e30).all())


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_sigma_has_to_be_positive(sigma: float) -> None:
    with pytest.raises(ConfigError, match=r"attack\.sigma: should be greater than 0"):
        build("gaussian", {"sigma": sigma})
