"""Random gradients: from the server's model to a fresh one, another for each attacker."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.random_gradients import random_gradients
from fedopt.types import FedoptError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(6)
    for seed in range(100):
        b, d = draw.randint(1, 6), draw.randint(1, 6)
        drawn: dict[int, list[float]] = {}

        def fresh(key: Tensor, d: int = d, drawn: dict[int, list[float]] = drawn) -> Tensor:
            drawn[int(key)] = [draw.gauss(0, 1) for _ in range(d)]
            return torch.tensor(drawn[int(key)], dtype=torch.float64)

        model = [draw.gauss(0, 5) for _ in range(d)]
        own = torch.full((b, d), torch.nan, dtype=torch.float64)
        got = random_gradients(
            own, key=keys.root(seed), model=torch.tensor(model, dtype=torch.float64), fresh=fresh
        ).tolist()
        assert len(drawn) == b, "each attacker draws once, with a key of its own"
        for row, weights in zip(got, drawn.values(), strict=True):
            assert row == [w - x for w, x in zip(weights, model, strict=True)]


def fresh(key: Tensor) -> Tensor:
    return keys.normal(key, 4)


def test_a_row_depends_on_the_key_and_its_place_alone() -> None:
    model, own = torch.arange(4.0), torch.zeros(3, 4)
    sent = random_gradients(own, key=keys.root(0), model=model, fresh=fresh)
    assert torch.equal(random_gradients(own + 5.0, key=keys.root(0), model=model, fresh=fresh), sent)
    assert torch.equal(random_gradients(own[:1], key=keys.root(0), model=model, fresh=fresh), sent[:1])
    assert len({tuple(row) for row in sent.tolist()}) == 3
    assert not torch.equal(random_gradients(own, key=keys.root(1), model=model, fresh=fresh), sent)
    assert model.tolist() == [0.0, 1.0, 2.0, 3.0] and not bool(own.any())


def test_the_server_lands_on_the_fresh_model() -> None:
    model = torch.arange(4.0)
    sent = random_gradients(torch.zeros(1, 4), key=keys.root(0), model=model, fresh=fresh)
    torch.testing.assert_close(model + sent[0], fresh(keys.fold(keys.root(0), 0)))


def test_the_type_is_that_of_what_was_seen() -> None:
    own = torch.zeros(2, 4, dtype=torch.float64)
    sent = random_gradients(own, key=keys.root(0), model=torch.full((4,), 1e30), fresh=fresh)
    assert sent.dtype == torch.float64 and bool(sent.isfinite().all())


def test_without_a_way_to_draw_models_it_says_so() -> None:
    attack = build("random_gradients", {})
    assert attack.knowledge == "nothing" and attack.vectors is not None
    with pytest.raises(FedoptError, match="the attack random_gradients needs fresh, which is not on offer here"):
        attack.vectors(torch.zeros(2, 4), 2, key=keys.root(0), n=5, model=torch.zeros(4))
