"""The majority vote against a loop, ties, and large attackers."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import build
from fedopt.aggregators import sign_vote as module
from fedopt.aggregators.sign_vote import sign_vote
from fedopt.registry import ConfigError


def loop(rows: list[list[float]], scale: float) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        ahead = 0
        for row in rows:
            if row[j] > 0:
                ahead += 1
            elif row[j] < 0:
                ahead -= 1
        result.append(scale if ahead > 0 else -scale if ahead < 0 else 0.0)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(18)
    for _ in range(100):
        n, d, scale = draw.randint(1, 10), draw.randint(1, 12), draw.uniform(1e-4, 3.0)
        # whole numbers, so that there are zeros and ties
        rows = [[float(draw.randint(-2, 2)) for _ in range(d)] for _ in range(n)]
        rule = build("sign_vote", {"scale": scale})
        assert rule.scope == "coordinate"
        got = rule.apply(torch.tensor(rows, dtype=torch.float64), rule.init(n))[0]
        assert got.tolist() == loop(rows, scale)


def test_a_tie_and_a_vote_of_zeros_move_nothing() -> None:
    updates = torch.tensor([[5.0, 0.0, 0.0], [-0.1, 0.0, -2.0]])
    assert sign_vote(updates, scale=0.5).tolist() == [0.0, 0.0, -0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_minority_cannot_turn_what_the_others_agree_on(dtype: torch.dtype) -> None:
    honest = 1e-6 + torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    attackers = torch.full((4, 8), -1e30, dtype=dtype)
    delta = sign_vote(torch.cat([attackers, honest]), scale=0.25)
    assert delta.dtype == dtype
    assert delta.tolist() == [0.25] * 8


def test_the_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(7, 130, generator=torch.Generator().manual_seed(1))
    whole = sign_vote(updates, scale=1.0)
    monkeypatch.setattr(module, "_BLOCK", 64)
    assert torch.equal(sign_vote(updates, scale=1.0), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, r"aggregator\.scale: missing"), ({"scale": 0.0}, r"aggregator\.scale: should be greater than 0")],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("sign_vote", options)
