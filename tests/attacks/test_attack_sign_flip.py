"""Sign flipping."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.sign_flip import sign_flip
from fedopt.registry import ConfigError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(4)
    for _ in range(100):
        b, d, scale = draw.randint(1, 5), draw.randint(1, 5), draw.uniform(0.1, 9)
        rows = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(b)]
        wanted = [[-scale * value for value in row] for row in rows]
        got = sign_flip(torch.tensor(rows, dtype=torch.float64), scale=scale)
        assert got.tolist() == wanted


def test_flips_without_magnification_by_default() -> None:
    attack = build("sign_flip", {})
    assert attack.knowledge == "own" and attack.labels is None and attack.vectors is not None
    assert attack.vectors(torch.tensor([[1.0, -2.0]]), 1).tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_has_to_be_positive(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"attack\.scale: should be greater than 0"):
        build("sign_flip", {"scale": scale})
