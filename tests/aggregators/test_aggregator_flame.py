"""FLAME against a loop that joins rows by distance, its clipping and its noise."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.flame import flame
from fedopt.registry import ConfigError

KEY = keys.root(10)


def majority(gaps: list[list[float]]) -> list[int]:
    """Rows are joined from the smallest distance on, until more than half of them hang together."""
    n = len(gaps)
    groups = [{i} for i in range(n)]
    for _, i, j in sorted((gaps[a][b], a, b) for a in range(n) for b in range(a)):
        one = next(group for group in groups if i in group)
        other = next(group for group in groups if j in group)
        if one is not other:
            groups.remove(other)
            one |= other
            if len(one) > n // 2:
                return sorted(one)
    return [0]


def loop(rows: list[list[float]]) -> tuple[list[float], list[float], float]:
    n, lengths = len(rows), [math.sqrt(sum(x * x for x in row)) for row in rows]
    gaps = []
    for i in range(n):
        dots = [sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for j in range(n)]
        gaps.append([1.0 - dots[j] / (lengths[i] * lengths[j]) for j in range(n)])
    ordered = sorted(lengths)
    bound = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    admitted = majority(gaps)
    weights = [min(1.0, bound / lengths[i]) / len(admitted) if i in admitted else 0.0 for i in range(n)]
    result = [sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(len(rows[0]))]
    return result, weights, bound


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(17)
    seen = set()
    for number in range(100):
        n, d = draw.randint(1, 14), draw.randint(3, 9)
        noise = draw.choice([0.0, 0.2])
        common = [draw.gauss(0, 1) for _ in range(d)]
        rows = []
        for _ in range(n):
            side, size = draw.choice([1.0, 1.0, -1.0]), draw.choice([0.1, 1.0, 1.0, 20.0])
            rows.append([size * (side * x + draw.gauss(0, 0.5)) for x in common])
        key = keys.root(number)
        rule = build("flame", {"noise": noise})
        got, _, info = rule.apply(torch.tensor(rows, dtype=torch.float64), rule.init(n), key=key)
        wanted, weights, bound = loop(rows)
        drawn = keys.normal(keys.fold(key, "flame"), d, dtype=torch.float64)
        total = torch.tensor(wanted, dtype=torch.float64) + noise * bound * drawn
        torch.testing.assert_close(info["trust"], torch.tensor(weights, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got, total, rtol=1e-9, atol=1e-12)
        seen.add((n, sum(w > 0 for w in weights)))
    assert len(seen) > 20


def around(aim: float, n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return aim + 0.3 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_a_minority_of_another_direction_is_left_out() -> None:
    honest = around(1.0, 7, 100, 0)
    attackers = around(1.0, 4, 100, 1) * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    delta, _, info = flame().apply(torch.cat([attackers, honest]), (), key=KEY)
    assert info["trust"][:4].tolist() == [0.0] * 4
    assert int((info["trust"] > 0).sum()) >= 6
    assert float((delta - 1.0).abs().max()) < 0.6


@pytest.mark.parametrize("size", [50.0, 1e30])
def test_a_long_update_of_the_right_direction_is_cut_to_the_median_length(size: float) -> None:
    updates = around(1.0, 9, 400, 2)
    plain = flame().apply(updates, (), key=KEY)[2]["trust"]
    chosen = int(plain.argmax())
    updates[chosen] *= size
    delta, _, info = flame().apply(updates, (), key=KEY)
    kept = int((info["trust"] > 0).sum())
    middle = updates.norm(dim=1).median()
    assert float(info["trust"][chosen] * kept * updates[chosen].norm()) == pytest.approx(float(middle))
    assert float(delta.norm()) <= float(middle) * (1.0 + 1e-9)


def test_noise_is_in_proportion_to_the_median_length() -> None:
    updates = around(1.0, 6, 5000, 3)
    plain = flame().apply(updates, (), key=KEY)[0]
    for factor in (1.0, 100.0):
        rule = flame(noise=0.01)
        one, again, other = (rule.apply(factor * updates, (), key=key)[0] for key in (KEY, KEY, keys.root(1)))
        assert torch.equal(one, again) and not torch.equal(one, other)
        wanted = 0.01 * factor * float(updates.norm(dim=1).median())
        assert float((one - factor * plain).std()) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_clients_who_agree_are_averaged(n: int, dtype: torch.dtype) -> None:
    updates = torch.tensor([[0.1, -0.7, 3.0]], dtype=dtype).repeat(n, 1)
    delta, _, info = flame().apply(updates, (), key=KEY)
    torch.testing.assert_close(delta, updates[0])
    assert bool((info["trust"] > 0).all())


def test_parallel_updates_stand_together_whatever_their_length() -> None:
    # cosines of parallel rows are 1 up to rounding, which is not to tell them apart
    generator = torch.Generator().manual_seed(0)
    updates = torch.randn(50, generator=generator) * (0.1 + torch.rand(15, generator=generator))[:, None]
    assert bool((flame().apply(updates, (), key=KEY)[2]["trust"] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_and_of_1e30(dtype: torch.dtype) -> None:
    updates = around(1.0, 9, 50, 5).to(dtype)
    updates[2] = -1e30
    updates[5] = 0.0
    delta, _, info = flame().apply(updates, (), key=KEY)
    assert bool(torch.isfinite(delta).all()) and float(delta.abs().max()) < 3.0
    assert info["trust"][[2, 5]].tolist() == [0.0, 0.0]


def test_where_most_updates_are_zeros_the_others_are_cut_to_nothing() -> None:
    updates = torch.zeros(5, 3)
    updates[:2] = 1.0
    delta, _, info = flame(noise=1.0).apply(updates, (), key=KEY)
    assert delta.tolist() == [0.0] * 3
    assert info["trust"][:2].tolist() == [0.0, 0.0]


def test_where_no_length_is_finite_nothing_moves() -> None:
    updates = torch.full((3, 2), 1e200, dtype=torch.float64)
    delta, _, info = flame(noise=1.0).apply(updates, (), key=KEY)
    assert delta.tolist() == [0.0, 0.0]
    assert info["trust"].tolist() == [0.0] * 3
    assert info["kept_model"] == "nothing is left of 3 updates with a median length of inf"


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.noise: should be greater than or equal to 0"):
        build("flame", {"noise": -0.1})
