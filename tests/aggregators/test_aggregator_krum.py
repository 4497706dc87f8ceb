"""Krum and Multi-Krum against a loop, the distances behind them, and the precondition."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import _distances, build
from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators.krum import krum
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int, m: int) -> list[float]:
    n, scored = len(rows), []
    for i in range(n):
        distances = []
        for j in range(n):
            if j != i:
                sq = 0.0
                for a, b in zip(rows[i], rows[j], strict=True):
                    sq += (a - b) * (a - b)
                distances.append(sq)
        distances.sort()
        scored.append((sum(distances[: n - f - 2]), i))
    scored.sort()
    result = []
    for j in range(len(rows[0])):
        result.append(sum(rows[i][j] for _, i in scored[:m]) / m)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(2)
    for _ in range(100):
        f = draw.randint(0, 3)
        n, d = draw.randint(2 * f + 4, 2 * f + 9), draw.randint(1, 6)
        m = draw.randint(1, n)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(n)]
        got = krum(torch.tensor(rows, dtype=torch.float64), f=f, m=m)
        torch.testing.assert_close(got, torch.tensor(loop(rows, f, m), dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_equal_scores_go_to_the_first_row() -> None:
    # two pairs of mutual neighbours at the same distance, with n - f - 2 = 1
    updates = torch.tensor([[9.0], [0.0], [1.0]])
    assert krum(updates, f=0).item() == 0.0
    assert krum(updates.flip(0), f=0).item() == 1.0


def test_with_all_rows_kept_it_is_the_plain_mean() -> None:
    updates = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(krum(updates, f=2, m=8), updates.mean(0))


def test_krum_gives_one_of_the_rows_bit_by_bit() -> None:
    updates = torch.randn(9, 50, generator=torch.Generator().manual_seed(3))
    assert any(torch.equal(krum(updates, f=2), row) for row in updates)


@pytest.mark.parametrize(
    ("dtype", "outlier"),
    [(torch.float32, 1.0), (torch.float32, 1e30), (torch.float64, 1.0), (torch.float64, 1e30), (torch.float64, 1e200)],
)
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-5])
def test_distances_of_rows_that_nearly_coincide(dtype: torch.dtype, outlier: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(4)
    updates = (100.0 + spread * torch.randn(6, 40, generator=generator, dtype=torch.float64)).to(dtype)
    updates[2] *= outlier
    got = sq_distances(updates)
    exact = updates.tolist()
    for i in range(6):
        for j in range(6):
            wanted = sum((a - b) * (a - b) for a, b in zip(exact[i], exact[j], strict=True))
            assert got[i, j].item() == pytest.approx(wanted, rel=1e-8), (i, j)
    assert torch.equal(got, got.T)


def test_distances_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(7, 130, generator=torch.Generator().manual_seed(5))
    updates[3] = updates[4] * (1 + 1e-6)
    whole = sq_distances(updates)
    monkeypatch.setattr(_distances, "_BLOCK", 70)
    torch.testing.assert_close(sq_distances(updates), whole, rtol=1e-12, atol=0.0)


def test_attackers_who_agree_do_not_win_below_the_bound() -> None:
    honest = 0.1 * torch.randn(9, 4, generator=torch.Generator().manual_seed(6))
    attackers = torch.full((3, 4), 5.0)
    for m in (1, 6):
        assert float(krum(torch.cat([attackers, honest]), f=3, m=m).abs().max()) < 0.5


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("krum", {"f": 2})
    assert rule.admits(7) is None
    assert rule.admits(5) == (
        "krum with f = 2 needs n >= 2f + 3 = 7 clients per exchange, 5 were given;"
        " lower aggregator.f or raise participation.count"
    )
    assert build("krum", {"f": 0, "m": 9}, "aggregator").admits(5) == (
        "krum with m = 9 needs n >= m = 9 clients per exchange, 5 were given;"
        " lower aggregator.m or raise participation.count"
    )
    with pytest.raises(FedoptError, match="needs n >= max\\(2f \\+ 3, m\\) = 7 rows, got 6"):
        krum(torch.ones(6, 2), f=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"aggregator\.f: missing"),
        ({"f": -1}, r"aggregator\.f: should be greater than or equal to 0"),
        ({"f": 1, "m": 0}, r"aggregator\.m: should be greater than or equal to 1"),
        ({"f": "2"}, r"aggregator\.f: should be a valid integer; '2' was given"),
        ({"f": 1.5}, r"aggregator\.f: "),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("krum", options)
