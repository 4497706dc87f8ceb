"""SignGuard against loops for the filters and for mean shift, and what passes them."""

from __future__ import annotations

import math
import random

import pytest
import torch
from sklearn.cluster import MeanShift
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.signguard import _mean_shift, signguard
from fedopt.registry import ConfigError

KEY = keys.root(8)
Point = tuple[float, ...]


def away(one: Point, other: Point) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def shifted(points: list[Point], bandwidth: float) -> list[int]:
    """Labels of mean shift: every point climbs to the mean of what is within reach until it stands still."""
    peaks: dict[Point, int] = {}
    for start in points:
        at = start
        while True:
            inside = [p for p in points if away(p, at) <= bandwidth]
            before, at = at, tuple(sum(p[k] for p in inside) / len(inside) for k in range(len(at)))
            if away(before, at) <= 1e-3 * bandwidth:
                break
        peaks[at] = len(inside)
    centres: list[Point] = []
    for peak, _ in sorted(peaks.items(), key=lambda entry: (entry[1], entry[0]), reverse=True):
        if all(away(peak, centre) > bandwidth for centre in centres):
            centres.append(peak)
    return [min(range(len(centres)), key=lambda k: away(p, centres[k])) for p in points]


def loop(
    rows: list[list[float]], columns: list[int], lower: float, upper: float, quantile: float
) -> tuple[list[float], list[float]]:
    n, lengths = len(rows), [math.sqrt(sum(x * x for x in row)) for row in rows]
    ordered = sorted(lengths)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    points: list[Point] = []
    for row in rows:
        plus = len([j for j in columns if row[j] > 0])
        minus = len([j for j in columns if row[j] < 0])
        points.append((plus / len(columns), (len(columns) - plus - minus) / len(columns), minus / len(columns)))
    reach = min(n, max(2, int(quantile * n)))
    bandwidth = sum(sorted(away(p, q) for q in points)[reach - 1] for p in points) / n
    if bandwidth == 0.0:
        kinds = sorted(set(points))
        labels = [kinds.index(p) for p in points]
    else:
        labels = shifted(points, 1.000001 * bandwidth)
    largest = max(sorted(set(labels)), key=labels.count)
    kept = [i for i in range(n) if labels[i] == largest and lower * middle <= lengths[i] <= upper * middle]
    weights = [0.0] * n
    for i in kept:
        weights[i] = (1.0 if lengths[i] == 0.0 else min(1.0, middle / lengths[i])) / len(kept)
    result = [sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(len(rows[0]))]
    return result, weights


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(14)
    seen = set()
    for number in range(100):
        n, d = draw.randint(1, 14), draw.randint(1, 60)
        lower, upper = draw.uniform(0.0, 0.9), draw.uniform(1.1, 4.0)
        share, quantile = draw.uniform(0.05, 1.0), draw.choice([0.3, 0.5])
        rows = []
        for _ in range(n):
            bias, size = draw.choice([0.7, 0.7, -0.7]), draw.choice([0.2, 1.0, 1.0, 5.0])
            rows.append([draw.choice([0.0, 1.0, 1.0]) * size * draw.gauss(bias, 1) for _ in range(d)])
        key = keys.root(number)
        count = max(1, math.ceil(share * d))
        columns = keys.sample(keys.fold(key, "signguard"), d, count).tolist()
        options = {"lower": lower, "upper": upper, "share": share, "quantile": quantile}
        rule = build("signguard", options)
        got, _, info = rule.apply(torch.tensor(rows, dtype=torch.float64), rule.init(n), key=key)
        wanted, weights = loop(rows, columns, lower, upper, quantile)
        torch.testing.assert_close(info["trust"], torch.tensor(weights, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        seen.add(sum(w > 0 for w in weights))
    assert len(seen) > 6


def test_clusters_are_those_of_scikit_learn() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(30, 3, generator=generator, dtype=torch.float64)
        points[:12] += 3.0
        bandwidth = 0.8 + 0.1 * (seed % 10)
        wanted = MeanShift(bandwidth=bandwidth).fit(points.numpy()).labels_
        assert _mean_shift(points, bandwidth).tolist() == wanted.tolist()


def honest(n: int, d: int, seed: int) -> Tensor:
    return 0.5 + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_flipped_signs_are_left_out() -> None:
    updates = honest(10, 1000, 0)
    updates[:3] *= -1.0
    _, _, info = signguard().apply(updates, (), key=KEY)
    assert info["trust"][:3].tolist() == [0.0] * 3
    assert bool((info["trust"][3:] > 0).all())


def test_implausible_lengths_are_left_out_and_long_ones_are_clipped() -> None:
    updates = honest(9, 400, 1)
    updates[0] *= 10.0
    updates[1] *= 0.01
    updates[2] *= 2.0
    delta, _, info = signguard(quantile=1.0).apply(updates, (), key=KEY)
    assert info["trust"][:2].tolist() == [0.0, 0.0]
    middle = updates.norm(dim=1).median()
    clipped = updates * (middle / updates.norm(dim=1)).clamp(max=1.0)[:, None]
    torch.testing.assert_close(delta, clipped[2:].mean(dim=0))
    assert float(info["trust"][2] * 7 * updates[2].norm()) == pytest.approx(float(middle))


def test_coordinates_are_drawn_again_in_every_exchange() -> None:
    updates = honest(8, 30, 2)
    updates[:4, :15] *= -1.0
    rule = signguard(share=0.1)
    trusts = [rule.apply(updates, (), key=keys.root(number))[2]["trust"] for number in (1, 1, 2, 3, 4, 5)]
    assert torch.equal(trusts[0], trusts[1])
    assert any(not torch.equal(trusts[0], other) for other in trusts[2:])


def test_where_nothing_passes_both_filters_nothing_moves() -> None:
    # the two of plausible length have unlike signs, and those of like signs are far too long or short
    updates = torch.tensor([[100.0, 100.0], [0.01, 0.01], [0.02, 0.01], [1.0, -1.0], [-1.0, -1.1]])
    delta, _, info = signguard(lower=0.9, upper=1.2, share=1.0).apply(updates, (), key=KEY)
    assert delta.tolist() == [0.0, 0.0]
    assert info["trust"].tolist() == [0.0] * 5
    assert info["kept_model"] == "none of 5 updates passes both filters"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_zeros_and_of_1e30(dtype: torch.dtype) -> None:
    updates = honest(7, 50, 3).to(dtype)
    updates[2] = 1e30
    updates[5] = 0.0
    delta, _, info = signguard().apply(updates, (), key=KEY)
    assert bool(torch.isfinite(delta).all()) and float(delta.abs().max()) < 10.0
    assert info["trust"][[2, 5]].tolist() == [0.0, 0.0]
    delta, _, info = signguard().apply(torch.zeros(3, 4, dtype=dtype), (), key=KEY)
    assert delta.tolist() == [0.0] * 4
    assert bool((info["trust"] > 0).all())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_clients_who_agree_are_averaged(n: int) -> None:
    updates = torch.ones(n, 5, dtype=torch.float64)
    delta, _, info = signguard(share=1.0).apply(updates, (), key=KEY)
    torch.testing.assert_close(delta, updates[0])
    assert bool((info["trust"] > 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": 1.5}, r"aggregator\.lower: should be less than or equal to 1"),
        ({"upper": 0.5}, r"aggregator\.upper: should be greater than or equal to 1"),
        ({"share": 0.0}, r"aggregator\.share: should be greater than 0"),
        ({"quantile": 2.0}, r"aggregator\.quantile: should be less than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("signguard", options)
