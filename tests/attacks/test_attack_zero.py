"""Zero updates."""

from __future__ import annotations

import random

import torch

from fedopt.attacks import build
from fedopt.attacks.zero import zero
from fedopt.testing import check_attack


def test_zeros_in_the_shape_and_type_of_what_was_seen_on_random_draws() -> None:
    draw = random.Random(1)
    for _ in range(100):
        b, d = draw.randint(1, 6), draw.randint(1, 6)
        dtype = draw.choice([torch.float32, torch.float64])
        own = torch.tensor([[draw.gauss(0, 1e30) for _ in range(d)] for _ in range(b)], dtype=dtype)
        sent = zero(own)
        assert sent.tolist() == [[0.0] * d for _ in range(b)] and sent.dtype == dtype
        assert bool(own.any())


def test_it_needs_no_work_of_anybody() -> None:
    assert build("zero", {}).knowledge == "nothing"
    check_attack("zero")
