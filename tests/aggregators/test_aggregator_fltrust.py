"""FLTrust against a loop, its fixed point, and updates that get no trust."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators.fltrust import fltrust
from fedopt.types import FedoptError


def loop(rows: list[list[float]], own: list[float]) -> tuple[list[float], list[float]]:
    length = math.sqrt(sum(x * x for x in own))
    scores, stretched = [], []
    for row in rows:
        size = math.sqrt(sum(x * x for x in row))
        dot = sum(a * b for a, b in zip(row, own, strict=True))
        scores.append(max(dot / (size * length), 0.0))
        stretched.append([x * length / size for x in row])
    total = sum(scores)
    if total == 0.0:
        return [0.0] * len(own), scores
    result = []
    for j in range(len(own)):
        result.append(sum(s * row[j] for s, row in zip(scores, stretched, strict=True)) / total)
    return result, [s / total for s in scores]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(12)
    stayed = 0
    for _ in range(100):
        n, d = draw.randint(1, 9), draw.randint(1, 6)
        rows = [[draw.gauss(0, 1) * 10 ** draw.uniform(-3, 3) for _ in range(d)] for _ in range(n)]
        own = [draw.gauss(0, 1) for _ in range(d)]
        rule = build("fltrust", {})
        updates, reference = torch.tensor(rows, dtype=torch.float64), torch.tensor(own, dtype=torch.float64)
        got, _, info = rule.apply(updates, rule.init(n), reference=reference)
        wanted, trust = loop(rows, own)
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(info["trust"], torch.tensor(trust, dtype=torch.float64), rtol=1e-10, atol=1e-12)
        stayed += "kept_model" in info
    assert 0 < stayed < 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_all_updates_are_the_servers_own_it_is_the_result(dtype: torch.dtype) -> None:
    own = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    delta, _, info = fltrust().apply(own.expand(5, -1), (), reference=own)
    torch.testing.assert_close(delta, own)
    torch.testing.assert_close(info["trust"], torch.full((5,), 0.2, dtype=torch.float64))


def test_the_length_of_an_update_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    updates = torch.randn(6, 20, generator=generator) + 0.5
    own = torch.ones(20)
    plain = fltrust().apply(updates, (), reference=own)[0]
    for size in (1e-20, 1e30):
        stretched = updates.clone()
        stretched[2] *= size
        torch.testing.assert_close(fltrust().apply(stretched, (), reference=own)[0], plain)


def test_the_result_is_never_longer_than_the_servers_own() -> None:
    own = torch.tensor([0.3, -0.4])
    updates = torch.randn(8, 2, generator=torch.Generator().manual_seed(2)) * 1e6
    assert float(fltrust().apply(updates, (), reference=own)[0].norm()) <= 0.5 + 1e-6


def test_attackers_who_point_away_get_no_trust() -> None:
    generator = torch.Generator().manual_seed(3)
    own = torch.ones(40)
    honest = own + 0.5 * torch.randn(3, 40, generator=generator)
    updates = torch.cat([-honest, -1e30 * honest, torch.zeros(2, 40), honest])
    delta, _, info = fltrust().apply(updates, (), reference=own)
    assert info["trust"][:8].tolist() == [0.0] * 8
    assert bool((info["trust"][8:] > 0.3).all())
    torch.testing.assert_close(delta, fltrust().apply(honest, (), reference=own)[0])


@pytest.mark.parametrize("own", [[1.0, 0.0], [0.0, 0.0]])
def test_without_any_trust_nothing_moves(own: list[float]) -> None:
    updates = torch.tensor([[-1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    delta, _, info = fltrust().apply(updates, (), reference=torch.tensor(own))
    assert delta.tolist() == [0.0, 0.0]
    assert info["trust"].tolist() == [0.0] * 3
    assert info["kept_model"] == "none of 3 updates points along the server's own"


def test_it_asks_for_the_servers_own_update() -> None:
    rule = build("fltrust", {})
    assert rule.needs == {"reference"}
    assert rule.admits(1) is None
    with pytest.raises(FedoptError, match="fltrust needs reference, which this strategy does not offer"):
        rule.apply(torch.ones(2, 2), ())
