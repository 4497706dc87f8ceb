"""The released variant of ALIE against a loop, its quantile, and its two bases."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.alie import z_max
from fedopt.attacks.alie_released import alie_released, z_released
from fedopt.attacks.random_gradients import random_gradients
from fedopt.registry import declare
from fedopt.testing import check_attack
from fedopt.types import FedoptError


def quantile(p: float) -> float:
    """Φ⁻¹ by bisection of Φ(z) = (1 + erf(z / √2)) / 2."""
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        if (1 + math.erf(middle / math.sqrt(2))) / 2 < p:
            low = middle
        else:
            high = middle
    return low


def loop(rows: list[list[float]], n: int) -> list[float]:
    b = len(rows)
    s = n // 2 + 1 - b
    z = quantile((n - s) / n) if s > 0 else 0.0
    result = []
    for j in range(len(rows[0])):
        mu = 0.0
        for row in rows:
            mu += row[j] / b
        variance = 0.0
        for row in rows:
            variance += (row[j] - mu) ** 2
        result.append(mu + z * math.sqrt(variance / (b - 1) if b > 1 else 0.0))
    return result


def fresh(key: Tensor) -> Tensor:
    return keys.normal(key, 3, dtype=torch.float64)


@pytest.mark.parametrize("base", ["random_gradients", "own"])
def test_equals_the_loop_on_random_draws(base: str) -> None:
    draw = random.Random(10)
    for seed in range(100):
        n = draw.randint(1, 40)
        b = draw.randint(1, n)
        own = torch.tensor([[draw.gauss(1, 3) for _ in range(3)] for _ in range(b)], dtype=torch.float64)
        model = torch.tensor([draw.gauss(0, 2) for _ in range(3)], dtype=torch.float64)
        rows = own
        if base == "random_gradients":
            rows = random_gradients(own, key=keys.root(seed), model=model, fresh=fresh)
        got = alie_released(own, b=b, n=n, key=keys.root(seed), model=model, fresh=fresh, base=base)  # type: ignore[arg-type]
        wanted = torch.tensor([loop(rows.tolist(), n)] * b, dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_numbers_of_the_specification() -> None:
    # n = 10, m = 4: s = 2
    assert z_released(10, 4) == pytest.approx(0.8416, abs=5e-5)
    assert z_released(10, 4) == pytest.approx(quantile(0.8), abs=1e-9)
    assert z_max(10, 4) == pytest.approx(0.4307, abs=5e-5)


@pytest.mark.parametrize(("n", "b", "z"), [(10, 6, 0.0), (10, 9, 0.0), (4, 4, 0.0), (1, 1, 0.0), (2, 1, 0.0)])
def test_edges_of_the_quantile(n: int, b: int, z: float) -> None:
    assert z_released(n, b) == pytest.approx(z, abs=1e-12)


def test_one_attacker_sends_its_base() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(alie_released(row, b=1, n=9, base="own"), row)


def test_z_and_direction_are_options() -> None:
    own = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    attack = build("alie_released", {"base": "own", "z": 1.5, "direction": -1})
    assert attack.knowledge == "colluders" and attack.vectors is not None
    # deviations √2 and √8 with divisor 1
    wanted = [[1 - 1.5 * 2**0.5, 3 - 1.5 * 8**0.5]] * 2
    torch.testing.assert_close(alie_released(own, b=2, n=4, base="own", z=1.5, direction=-1), torch.tensor(wanted))


def test_random_gradients_are_the_default_and_need_a_model() -> None:
    own = torch.zeros(2, 3)
    with pytest.raises(FedoptError, match=r'draws fresh models .* set attack\.base to "own"'):
        alie_released(own, b=2, n=5, key=keys.root(0), model=torch.zeros(3))


def test_contract_of_the_base_own() -> None:
    @declare(knowledge="colluders")
    def on_own_rows(own: Tensor, *, b: int, n: int) -> Tensor:
        return alie_released(own, b=b, n=n, base="own")

    check_attack(on_own_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    own = torch.tensor([[1e30, -1e30], [2e30, 1e30], [0.0, 3e30]], dtype=dtype)
    sent = alie_released(own, b=3, n=20, base="own")
    assert bool(sent.isfinite().all()) and sent.dtype == dtype
    first = sent[1].clone()
    sent[0] = 0.0
    assert torch.equal(sent[1], first)
