"""The robust learning rate against a loop, its limits, and a backdoor that is walked away from."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.mean import mean
from fedopt.aggregators.rlr import rlr
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], weights: list[int], theta: int) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        total, ahead = 0.0, 0
        for w, row in zip(weights, rows, strict=True):
            total += w * row[j] / sum(weights)
            ahead += (row[j] > 0) - (row[j] < 0)
        result.append(total if abs(ahead) >= theta else -total)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(19)
    turned = 0
    for _ in range(100):
        n, d = draw.randint(1, 12), draw.randint(1, 6)
        theta = draw.randint(0, n)
        rows = [[draw.gauss(0.5, 1) * draw.choice([0.0, 1.0, 1.0]) for _ in range(d)] for _ in range(n)]
        weights = [draw.randint(1, 50) for _ in range(n)]
        rule = build("rlr", {"theta": theta})
        updates = torch.tensor(rows, dtype=torch.float64)
        got = rule.apply(updates, rule.init(n), weights=torch.tensor(weights))[0]
        wanted = torch.tensor(loop(rows, weights, theta), dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        turned += int(((got * mean(updates, weights=torch.tensor(weights))) < 0).sum())
    assert turned > 50


def test_a_threshold_of_zero_is_the_weighted_mean() -> None:
    updates = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    weights = torch.arange(1, 7)
    assert torch.equal(rlr(updates, weights=weights, theta=0), mean(updates, weights=weights))


def test_as_many_votes_as_the_threshold_are_enough() -> None:
    updates = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -0.5], [1.0, 0.0]])
    # votes 4 and 1
    assert rlr(updates, weights=torch.ones(4), theta=4).tolist() == [1.0, -0.375]
    assert rlr(updates, weights=torch.ones(4), theta=2).tolist() == [1.0, -0.375]
    assert rlr(updates, weights=torch.ones(4), theta=1).tolist() == [1.0, 0.375]


def test_the_step_goes_away_from_what_only_attackers_want() -> None:
    updates = 1.0 + 0.1 * torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    updates[:5, 5:], updates[5:, 5:] = 0.01, -0.01
    updates[:3, 5:] = 20.0  # the backdoor
    plain = mean(updates, weights=torch.ones(10))
    delta = rlr(updates, weights=torch.ones(10), theta=5)
    assert bool((plain[5:] > 5.0).all()) and bool((delta[5:] < -5.0).all())
    assert torch.equal(delta[:5], plain[:5])


def test_rows_of_1e30_stay_finite() -> None:
    updates = torch.ones(3, 4)
    updates[1] = -1e30
    assert bool(torch.isfinite(rlr(updates, weights=torch.ones(3), theta=2)).all())


def test_bad_input_is_refused_with_the_numbers() -> None:
    rule = build("rlr", {"theta": 5})
    assert rule.needs == {"weights"}
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "rlr with theta = 5 needs n >= theta = 5 clients per exchange, 4 were given;"
        " lower aggregator.theta or raise participation.count"
    )
    with pytest.raises(FedoptError, match="rlr with theta = 5 needs n >= theta = 5 rows, 4 were given"):
        rlr(torch.ones(4, 2), weights=torch.ones(4), theta=5)
    with pytest.raises(FedoptError, match="needs weights >= 0 with a positive sum"):
        rlr(torch.ones(2, 2), weights=torch.zeros(2), theta=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"aggregator\.theta: missing"),
        ({"theta": -1}, r"aggregator\.theta: should be greater than or equal to 0"),
        ({"theta": 1.5}, r"aggregator\.theta: "),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("rlr", options)
