"""Sybils: one row for all, and the jitter that hides it."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.sybil import sybil
from fedopt.registry import ConfigError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(21)
    for seed in range(100):
        b, d = draw.randint(1, 8), draw.randint(1, 6)
        own = [[draw.gauss(1, 3) for _ in range(d)] for _ in range(b)]
        mean = []
        for j in range(d):
            total = 0.0
            for row in own:
                total += row[j]
            mean.append(total / b)
        got = sybil(torch.tensor(own, dtype=torch.float64), key=keys.root(seed))
        torch.testing.assert_close(got, torch.tensor([mean] * b, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_jitter_makes_the_rows_differ_by_so_much() -> None:
    own = torch.full((3, 20_000), 4.0)
    sent = sybil(own, key=keys.root(0), jitter=0.5)
    assert float(sent.mean()) == pytest.approx(4.0, abs=0.02)
    assert sent.std(dim=1).tolist() == pytest.approx([0.5] * 3, rel=0.05)
    assert not torch.equal(sent[0], sent[1])
    assert torch.equal(sybil(own, key=keys.root(0), jitter=0.5), sent)
    assert not torch.equal(sybil(own, key=keys.root(1), jitter=0.5), sent)


def test_every_attacker_has_a_row_of_its_own() -> None:
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sent = sybil(own, key=keys.root(0))
    sent[0] = 9.0
    assert sent[1].tolist() == [2.0, 3.0] and own.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_one_attacker_sends_its_own_row() -> None:
    row = torch.tensor([[1.0, -2.0]])
    assert torch.equal(sybil(row, key=keys.root(0)), row)


def test_torch_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    sybil(torch.ones(2, 3), key=keys.root(1), jitter=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    sent = sybil(torch.full((6, 3), 1e30, dtype=dtype), key=keys.root(0), jitter=1e20)
    assert bool(sent.isfinite().all()) and sent.dtype == dtype


def test_jitter_is_not_negative() -> None:
    assert build("sybil", {}).knowledge == "colluders"
    with pytest.raises(ConfigError, match=r"attack\.jitter: should be greater than or equal to 0"):
        build("sybil", {"jitter": -1.0})
