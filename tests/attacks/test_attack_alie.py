"""ALIE against a loop, the published quantile, and its edges."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.alie import alie, z_max
from fedopt.attacks.alie_colluders import alie_colluders
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


def loop(rows: list[list[float]], n: int, b: int) -> list[float]:
    s = math.floor(n / 2 + 1) - b
    z = quantile((n - b - s) / (n - b))
    result = []
    for j in range(len(rows[0])):
        mu = 0.0
        for row in rows:
            mu += row[j] / len(rows)
        variance = 0.0
        for row in rows:
            variance += (row[j] - mu) ** 2 / len(rows)
        result.append(mu + z * math.sqrt(variance))
    return result


@pytest.mark.parametrize("attack", [alie, alie_colluders])
def test_equals_the_loop_on_random_draws(attack: object) -> None:
    draw = random.Random(3)
    for _ in range(100):
        n = draw.randint(4, 40)
        b = draw.randint(1, (n - 1) // 2)
        k = n - b if attack is alie else b
        rows = [[draw.gauss(1, 3) for _ in range(4)] for _ in range(k)]
        got = attack(torch.tensor(rows, dtype=torch.float64), b=b, n=n)  # type: ignore[operator]
        wanted = torch.tensor([loop(rows, n, b)] * b, dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_published_example() -> None:
    # n = 10, b = 4: s = 2, Φ⁻¹(4/6); the paper's own n = 50, b = 24: s = 2, Φ⁻¹(24/26)
    assert z_max(10, 4) == pytest.approx(0.4307, abs=5e-5)
    assert z_max(50, 24) == pytest.approx(quantile(24 / 26), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "b", "p"),
    [
        (3, 1, 1 / 2),  # s = 1 of 2: the mean itself
        (4, 1, 1 / 3),  # s = 2 of 3: below the mean
        (10, 5, 4 / 5),  # s = 1 of 5
        (10, 6, 3 / 4),  # published argument 1, infinite: one of 4 stays beyond
        (10, 8, 1 / 2),  # published argument above 1: one of 2 stays beyond
    ],
)
def test_edges_of_the_quantile(n: int, b: int, p: float) -> None:
    assert z_max(n, b) == pytest.approx(quantile(p), abs=1e-9)


@pytest.mark.parametrize(("n", "b"), [(2, 1), (10, 9), (1, 1), (5, 5)])
def test_without_two_honest_clients_there_is_no_shift(n: int, b: int) -> None:
    assert z_max(n, b) == 0.0


def test_one_honest_row_is_sent_as_it_is() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(alie(row, b=3, n=4), row.expand(3, 2))


def test_one_colluder_sends_its_own_row() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(alie_colluders(row, b=1, n=9), row)


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"alie sees no honest update among the 4 clients .* use alie_colluders"):
        alie(torch.zeros(0, 3), b=4, n=4)
    own = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alie_colluders(own, b=4, n=4), own.mean(0).expand(4, 3))


@pytest.mark.parametrize("name", ["alie", "alie_colluders"])
def test_z_and_direction_are_options(name: str) -> None:
    seen = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    attack = build(name, {"z": 1.5, "direction": -1})
    assert attack.vectors is not None
    assert attack.vectors(seen, 2, n=4, key=None).tolist() == [[1 - 1.5, 3 - 3.0]] * 2


def test_every_attacker_has_a_row_of_its_own() -> None:
    sent = alie(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), b=4, n=10)
    first = sent[1].clone()
    sent[0] = 0.0
    assert torch.equal(sent[1], first)
