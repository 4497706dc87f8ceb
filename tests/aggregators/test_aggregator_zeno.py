"""Zeno against a loop, its mini-batches, and what it leaves out."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.zeno import zeno
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, Trial

KEY = keys.root(4)


def unused(*_: Any) -> Tensor:
    raise AssertionError("not for Zeno")


def least_squares(samples: list[list[float]], wanted: list[float], dtype: torch.dtype = torch.float64) -> Trial:
    """The loss of sample j is (aⱼ·delta - yⱼ)²."""
    a, y = torch.tensor(samples, dtype=dtype), torch.tensor(wanted, dtype=dtype)

    def loss(deltas: Tensor, rows: Tensor | None = None) -> Tensor:
        chosen = torch.arange(len(samples)) if rows is None else rows
        return (deltas @ a[chosen].T - y[chosen]).square().mean(dim=1)

    return Trial(loss, unused, unused, y)


def bowl(*lowest: float) -> Trial:
    """‖delta - lowest‖² / d."""
    d = len(lowest)
    return least_squares([[float(i == j) for j in range(d)] for i in range(d)], list(lowest))


def loop(
    rows: list[list[float]], samples: list[list[float]], wanted: list[float], chosen: list[int], b: int, rho: float
) -> tuple[list[float], list[int]]:
    def loss(point: list[float]) -> float:
        total = 0.0
        for j in chosen:
            z = -wanted[j]
            for a, x in zip(samples[j], point, strict=True):
                z += a * x
            total += z * z
        return total / len(chosen)

    here = loss([0.0] * len(rows[0]))
    scored = []
    for i, row in enumerate(rows):
        scored.append((here - loss(row) - rho * sum(x * x for x in row), -i))
    scored.sort(reverse=True)
    kept = [-i for _, i in scored[: len(rows) - b]]
    result = []
    for j in range(len(rows[0])):
        result.append(sum(rows[i][j] for i in kept) / len(kept))
    return result, kept


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(11)
    for number in range(100):
        b = draw.randint(0, 4)
        n, d, size = draw.randint(b + 1, b + 8), draw.randint(1, 6), draw.randint(1, 9)
        rho, batch = draw.choice([0.0, 5e-4, 0.1, 3.0]), draw.choice([None, draw.randint(1, size)])
        rows = [[draw.gauss(0, 2) for _ in range(d)] for _ in range(n)]
        samples = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(size)]
        wanted = [draw.gauss(0, 1) for _ in range(size)]
        key = keys.root(number)
        chosen = list(range(size))
        if batch is not None:
            chosen = keys.sample(keys.fold(key, "zeno"), size, batch).tolist()
        rule = build("zeno", {"b": b, "rho": rho, "batch": batch})
        updates = torch.tensor(rows, dtype=torch.float64)
        got, _, info = rule.apply(updates, rule.init(n), trial=least_squares(samples, wanted), key=key)
        oracle, kept = loop(rows, samples, wanted, chosen, b, rho)
        torch.testing.assert_close(got, torch.tensor(oracle, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        assert info["trust"].tolist() == [1 / len(kept) if i in kept else 0.0 for i in range(n)]


def test_with_nothing_left_out_it_is_the_mean() -> None:
    updates = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rule = build("zeno", {"b": 0})
    torch.testing.assert_close(rule.apply(updates, (), trial=bowl(1.0, 0.0, 0.0, 0.0), key=KEY)[0], updates.mean(0))


def test_the_penalty_tells_equal_losses_apart() -> None:
    # both rows lie at distance 1 from the lowest point
    updates = torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for rho, first in ((0.0, 0), (1e-6, 1)):
        delta, _, info = zeno(b=1, rho=rho).apply(updates, (), trial=bowl(2.0, 0.0), key=KEY)
        assert int(info["trust"].argmax()) == first
        assert torch.equal(delta, updates[first])


def test_attackers_who_raise_the_loss_are_left_out() -> None:
    lowest = [1.0] * 6
    honest = 0.3 + 0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    attackers = torch.cat([-honest[:2], 20.0 * honest[:1], 1e30 * honest[:1]])
    updates = torch.cat([attackers, honest])
    delta, _, info = zeno(b=4).apply(updates, (), trial=bowl(*lowest), key=KEY)
    assert info["trust"].tolist() == [0.0] * 4 + [1 / 6] * 6
    torch.testing.assert_close(delta, honest.mean(0))
    # one of them too many for b: the least bad of them is averaged in
    assert int((zeno(b=3).apply(updates, (), trial=bowl(*lowest), key=KEY)[2]["trust"] > 0).sum()) == 7


def test_a_loss_that_overflows_is_never_kept() -> None:
    updates = torch.tensor([[1e30, 0.0], [0.5, 0.0]])
    trial = least_squares([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0], torch.float32)
    delta, _, info = zeno(b=0).apply(updates, (), trial=trial, key=KEY)
    assert (delta.tolist(), info["trust"].tolist()) == ([0.5, 0.0], [0.0, 1.0])
    delta, _, info = zeno(b=0).apply(updates[:1], (), trial=trial, key=KEY)
    assert (delta.tolist(), info["trust"].tolist()) == ([0.0, 0.0], [0.0])
    assert info["kept_model"] == "none of 1 updates has a finite score"


def test_a_mini_batch_is_drawn_again_in_every_exchange() -> None:
    seen = []

    def loss(deltas: Tensor, rows: Tensor | None = None) -> Tensor:
        assert rows is not None
        seen.append(rows.tolist())
        return deltas.sum(dim=1)

    trial = Trial(loss, unused, unused, torch.zeros(50))
    rule = zeno(b=1, batch=8)
    for key in (KEY, KEY, keys.root(5)):
        rule.apply(torch.eye(3), (), trial=trial, key=key)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) == 8


def test_bad_input_is_refused_with_the_numbers() -> None:
    rule = build("zeno", {"b": 3})
    assert rule.needs == {"trial", "key"}
    assert rule.admits(4) is None
    assert rule.admits(3) == (
        "zeno with b = 3 needs n >= b + 1 = 4 clients per exchange, 3 were given;"
        " lower aggregator.b or raise participation.count"
    )
    with pytest.raises(FedoptError, match=r"needs n >= b \+ 1 = 4 rows, 2 were given"):
        zeno(b=3).apply(torch.ones(2, 2), (), trial=bowl(0.0, 0.0), key=KEY)
    with pytest.raises(FedoptError, match=r"batch = 9 needs as many trial samples, there are 2;"):
        zeno(b=1, batch=9).apply(torch.ones(2, 2), (), trial=bowl(0.0, 0.0), key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"aggregator\.b: missing"),
        ({"b": -1}, r"aggregator\.b: should be greater than or equal to 0"),
        ({"b": 1, "rho": -0.1}, r"aggregator\.rho: should be greater than or equal to 0"),
        ({"b": 1, "batch": 0}, r"aggregator\.batch: should be greater than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("zeno", options)
