"""DnC against loops with another way to the singular vector, and attackers who move together."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.dnc import dnc
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

KEY = keys.root(9)


def first_direction(rows: list[list[float]]) -> list[float]:
    """First right singular vector, by squaring the d by d matrix until nothing else is left of it."""
    d = len(rows[0])
    power = [[sum(row[a] * row[b] for row in rows) for b in range(d)] for a in range(d)]
    for _ in range(20):
        trace = sum(power[a][a] for a in range(d))
        power = [[x / trace for x in line] for line in power]
        power = [[sum(power[a][k] * power[k][b] for k in range(d)) for b in range(d)] for a in range(d)]
    largest = max(range(d), key=lambda a: power[a][a])
    length = math.sqrt(sum(x * x for x in power[largest]))
    return [x / length for x in power[largest]]


def loop(rows: list[list[float]], sets: list[list[int]], out: int) -> tuple[list[float], list[int]]:
    n, d = len(rows), len(rows[0])
    good = set(range(n))
    for columns in sets:
        mean = [sum(row[j] for row in rows) / n for j in columns]
        centred = [[row[j] - m for j, m in zip(columns, mean, strict=True)] for row in rows]
        if n > 1:
            v = first_direction(centred)
            scores = [sum(a * b for a, b in zip(row, v, strict=True)) ** 2 for row in centred]
        else:
            scores = [0.0]
        ordered = sorted(range(n), key=lambda i: scores[i])
        good &= set(ordered[: n - out])
    if not good:
        return [0.0] * d, []
    return [sum(rows[i][j] for i in good) / len(good) for j in range(d)], sorted(good)


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(15)
    nobody = 0
    for number in range(100):
        f, c = draw.randint(0, 3), draw.choice([1.0, 0.5, 1.5])
        out = {1.0: f, 0.5: (f + 1) // 2, 1.5: (3 * f + 1) // 2}[c]
        n, d = draw.randint(2 * f + 1, 2 * f + 6), draw.randint(1, 8)
        coordinates, iterations = draw.randint(1, 9), draw.randint(1, 4)
        rows = [[draw.gauss(0, 1) * draw.choice([1.0, 2.0, 4.0]) for _ in range(d)] for _ in range(n)]
        key = keys.root(number)
        count = min(coordinates, d)
        sets = [keys.sample(keys.fold(key, "dnc", t), d, count).tolist() for t in range(iterations)]
        rule = build("dnc", {"f": f, "c": c, "coordinates": coordinates, "iterations": iterations})
        got, _, info = rule.apply(torch.tensor(rows, dtype=torch.float64), rule.init(n), key=key)
        wanted, kept = loop(rows, sets, out)
        assert [i for i in range(n) if info["trust"][i] > 0] == kept
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        nobody += not kept
    assert nobody < 20


def honest(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_without_attackers_it_is_the_mean() -> None:
    updates = honest(6, 5)
    torch.testing.assert_close(dnc(f=0).apply(updates, (), key=KEY)[0], updates.mean(0))


@pytest.mark.parametrize("size", [3.0, 1e30])
def test_attackers_who_move_together_are_left_out(size: float) -> None:
    # three times the spread of one coordinate, in each: invisible there, and far away all together
    updates = honest(12, 400)
    updates[[1, 5, 9]] = size * updates[0].sign()
    delta, _, info = dnc(f=3, coordinates=100, iterations=2).apply(updates, (), key=KEY)
    assert info["trust"][[1, 5, 9]].tolist() == [0.0] * 3
    assert float(delta.abs().max()) < 3.0


def test_several_sets_of_coordinates_leave_out_what_one_does_not_see() -> None:
    # the coordinates that tell the attackers apart are few
    updates = 0.01 * honest(12, 40)
    updates[:2, 7] += 50.0
    updates[2:4, 23] -= 50.0
    once = dnc(f=2, coordinates=20, iterations=1).apply(updates, (), key=KEY)[2]["trust"]
    often = dnc(f=2, coordinates=20, iterations=12).apply(updates, (), key=KEY)[2]["trust"]
    assert bool((once[:4] > 0).any())
    assert often[:4].tolist() == [0.0] * 4


def test_with_all_coordinates_the_key_does_not_matter() -> None:
    updates = honest(9, 6)
    rule = dnc(f=2)
    assert torch.equal(rule.apply(updates, (), key=KEY)[0], rule.apply(updates, (), key=keys.root(1))[0])
    rule = dnc(f=2, coordinates=3, iterations=1)
    found = {tuple(rule.apply(updates, (), key=keys.root(number))[0].tolist()) for number in range(8)}
    assert len(found) > 1
    assert torch.equal(rule.apply(updates, (), key=KEY)[0], rule.apply(updates, (), key=KEY)[0])


def test_where_everybody_is_left_out_once_nothing_moves() -> None:
    # in each coordinate another client sticks out
    updates = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    delta, _, info = dnc(f=1, coordinates=1, iterations=60).apply(updates, (), key=KEY)
    assert delta.tolist() == [0.0] * 5
    assert info["trust"].tolist() == [0.0] * 5
    assert info["kept_model"] == "each of 5 updates is left out by one of 60 iterations"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_do_not_differ(dtype: torch.dtype) -> None:
    for updates in (torch.full((7, 3), 0.3, dtype=dtype), torch.zeros(7, 3, dtype=dtype)):
        torch.testing.assert_close(dnc(f=2).apply(updates, (), key=KEY)[0], updates[0])


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("dnc", {"f": 2})
    assert rule.admits(5) is None
    assert rule.admits(4) == (
        "dnc with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    message = build("dnc", {"f": 3, "c": 2.5}).admits(8)
    assert message is not None and message.startswith("dnc with f = 3, c = 2.5 needs n >= c * f + 1 = 9 clients")
    with pytest.raises(FedoptError, match=r"needs n >= max\(2f, c f\) \+ 1 = 5 rows, 4 were given"):
        dnc(f=2).apply(torch.ones(4, 2), (), key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"aggregator\.f: missing"),
        ({"f": -1}, r"aggregator\.f: should be greater than or equal to 0"),
        ({"f": 1, "c": 0.0}, r"aggregator\.c: should be greater than 0"),
        ({"f": 1, "coordinates": 0}, r"aggregator\.coordinates: should be greater than or equal to 1"),
        ({"f": 1, "iterations": 0}, r"aggregator\.iterations: should be greater than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("dnc", options)
