"""Inner product manipulation."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.ipm import ipm
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(7)
    for _ in range(100):
        n, d, kappa = draw.randint(2, 20), draw.randint(1, 5), draw.uniform(0.1, 9)
        b = draw.randint(1, n - 1)
        rows = [[draw.gauss(1, 3) for _ in range(d)] for _ in range(n - b)]
        wanted = []
        for j in range(d):
            total = 0.0
            for row in rows:
                total += row[j]
            wanted.append(-kappa * total / len(rows))
        got = ipm(torch.tensor(rows, dtype=torch.float64), b=b, kappa=kappa)
        torch.testing.assert_close(got, torch.tensor([wanted] * b, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_mean_of_all_moves_backwards_from_h_over_kappa_attackers_on() -> None:
    honest = torch.ones(4, 2, dtype=torch.float64)
    for b, sign in ((7, 1.0), (9, -1.0)):
        every = torch.cat([honest, ipm(honest, b=b)])
        assert every.mean(0).sign().tolist() == [sign, sign]


def test_half_of_the_mean_by_default() -> None:
    attack = build("ipm", {})
    assert attack.knowledge == "omniscient" and attack.vectors is not None
    assert attack.vectors(torch.tensor([[1.0, -2.0], [3.0, 0.0]]), 2, n=4).tolist() == [[-1.0, 0.5]] * 2


def test_every_attacker_has_a_row_of_its_own() -> None:
    honest = torch.ones(2, 3)
    sent = ipm(honest, b=5)
    sent[0] = 9.0
    assert sent[1].tolist() == [-0.5] * 3 and bool((honest == 1.0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    sent = ipm(torch.full((7, 3), 1e30, dtype=dtype), b=1, kappa=2.0)
    torch.testing.assert_close(sent, torch.full((1, 3), -2e30, dtype=dtype))


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"ipm sees no honest update .* 4 attackers; lower the share .* raise"):
        ipm(torch.zeros(0, 3), b=4)


@pytest.mark.parametrize("kappa", [0.0, -1.0])
def test_kappa_has_to_be_positive(kappa: float) -> None:
    with pytest.raises(ConfigError, match=r"attack\.kappa: should be greater than 0"):
        build("ipm", {"kappa": kappa})
