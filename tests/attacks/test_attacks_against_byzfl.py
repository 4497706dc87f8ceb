"""Attacks beside those of ByzFL (0.0.11), where it has them; each test says where the two differ.

ByzFL gives one vector `[d]` that all attackers send, here every attacker has a row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks.alie import alie
from fedopt.attacks.gaussian import gaussian
from fedopt.attacks.infinite import infinite
from fedopt.attacks.ipm import ipm
from fedopt.attacks.mimic import mimic
from fedopt.attacks.optimal_alie import optimal_alie
from fedopt.attacks.optimal_ipm import Outcome, optimal_ipm
from fedopt.attacks.sign_flip import sign_flip

byzfl = pytest.importorskip("byzfl")


def draws() -> Iterator[tuple[Tensor, int]]:
    """Honest rows and a number of attackers, fewer than half."""
    draw = random.Random(25)
    for seed in range(100):
        n, d = draw.randint(5, 15), draw.randint(1, 6)
        b = draw.randint(1, (n - 1) // 2)
        yield 3.0 * keys.normal(keys.root(seed), n - b, d, dtype=torch.float64) + 1.0, b


def close(got: Tensor, wanted: Any, b: int) -> None:
    torch.testing.assert_close(got, torch.as_tensor(wanted).expand(b, -1).to(got), rtol=1e-5, atol=1e-5)


def rule(honest: Tensor, aggregator: Any) -> Outcome:
    return lambda sent: aggregator(torch.cat([honest, sent]))


def aggregators(b: int) -> list[Any]:
    return [byzfl.TrMean(f=b), byzfl.Median(), byzfl.Krum(f=b), byzfl.Average()]


def test_sign_flip() -> None:
    """ByzFL's attackers all send minus the honest mean; here each turns its own update round."""
    for honest, b in draws():
        close(sign_flip(honest.mean(dim=0).expand(b, -1)), byzfl.SignFlipping()(honest), b)


def test_ipm() -> None:
    """The default of ByzFL's tau is 2, that of κ here 0.5."""
    for honest, b in draws():
        for kappa in (0.5, 2.0, 7.5):
            close(ipm(honest, b=b, kappa=kappa), byzfl.InnerProductManipulation(kappa)(honest), b)


def test_optimal_ipm() -> None:
    """The same search. ByzFL cuts lengths (`Clipping`) before it aggregates unless told not to, as it is here."""
    for honest, b in draws():
        for aggregator in aggregators(b):
            there = byzfl.Optimal_InnerProductManipulation(aggregator, pre_agg_list=[], f=b)
            close(optimal_ipm(honest, b=b, outcome=rule(honest, aggregator)), there(honest), b)


def test_alie() -> None:
    """ByzFL divides the squares by h - 1, here by h, so the same vectors have z = tau √(h / (h - 1)).

    ByzFL's tau is a number of one's own, 1.5 by default; here z follows from n and b unless it is given.
    """
    for honest, b in draws():
        h = honest.shape[0]
        for tau in (0.4307, 1.5):
            z = tau * math.sqrt(h / (h - 1))
            close(alie(honest, b=b, n=h + b, z=z), byzfl.ALittleIsEnough(tau)(honest), b)


def test_optimal_alie() -> None:
    """The same search, with steps longer by √(h / (h - 1)) for the divisor, see `test_alie`."""
    for honest, b in draws():
        h = honest.shape[0]
        for aggregator in aggregators(b):
            there = byzfl.Optimal_ALittleIsEnough(aggregator, pre_agg_list=[], f=b)
            here = optimal_alie(honest, b=b, outcome=rule(honest, aggregator), step=10.0 * math.sqrt(h / (h - 1)))
            close(here, there(honest), b)


def test_mimic() -> None:
    """ByzFL copies the client of a fixed place, the first by default; here that is an option."""
    for honest, b in draws():
        for row in (0, honest.shape[0] - 1):
            close(mimic(honest, b=b, row=row), byzfl.Mimic(row)(honest), b)


def test_infinite() -> None:
    """ByzFL has infinity alone, in float64 whatever the updates are in; here also NaN, in the type of the updates."""
    honest, b = next(draws())
    close(infinite(honest[:b]), byzfl.Inf()(honest), b)


def test_gaussian() -> None:
    """ByzFL draws from the global generator, one vector for all attackers; here each has its own, from a key.

    So the distributions are compared: mean and deviation of 100,000 numbers.
    """
    rows = torch.zeros(1, 100_000, dtype=torch.float64)
    here = gaussian(rows, key=keys.root(0), sigma=2.5)[0]
    there = torch.as_tensor(byzfl.Gaussian(mu=0.0, sigma=2.5)(rows)).double()
    for drawn in (here, there):
        assert float(drawn.mean()) == pytest.approx(0.0, abs=5 * 2.5 / math.sqrt(1e5))
        assert float(drawn.std()) == pytest.approx(2.5, rel=0.02)
    ordered = (here.sort().values - there.sort().values).abs()
    assert float(ordered[1000:-1000].max()) < 0.1
