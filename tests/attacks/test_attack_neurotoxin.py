"""Neurotoxin: which coordinates are left out, and the bound."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.neurotoxin import neurotoxin
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(20)
    for _ in range(100):
        b, d = draw.randint(1, 5), draw.randint(1, 20)
        top, bound = draw.uniform(0, 0.99), draw.choice([None, draw.uniform(0.5, 5)])
        own = [[draw.gauss(0, 3) for _ in range(d)] for _ in range(b)]
        # of few different values, so that some are equal
        previous = [float(draw.randint(-4, 4)) for _ in range(d)]
        spared: set[int] = set()
        while len(spared) < math.floor(top * d + 1e-9):
            rest = [j for j in range(d) if j not in spared]
            spared.add(max(rest, key=lambda j: abs(previous[j])))
        wanted = []
        for row in own:
            kept = [0.0 if j in spared else x for j, x in enumerate(row)]
            length = math.sqrt(sum(x * x for x in kept))
            shrink = bound / length if bound is not None and length > bound else 1.0
            wanted.append([shrink * x for x in kept])
        noise = torch.tensor([draw.gauss(0, 1) for _ in range(d)], dtype=torch.float64).round()
        movement = torch.tensor(previous, dtype=torch.float64)
        rows = torch.tensor(own, dtype=torch.float64)
        got = neurotoxin(torch.stack([movement + noise, movement - noise]), own=rows, b=b, top=top, bound=bound)
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_size_and_not_sign_of_the_movement_counts() -> None:
    own = torch.arange(1.0, 11.0).expand(2, 10)
    previous = torch.tensor([0.1, -9.0, 0.2, 3.0, 0.0, 0.3, 0.0, 0.0, 0.1, -0.2])
    sent = neurotoxin(previous[None], own=own, b=len(own), top=0.2)
    assert sent.tolist() == [[1.0, 0.0, 3.0, 0.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]] * 2


def test_without_an_honest_client_there_is_nothing_to_go_by() -> None:
    with pytest.raises(FedoptError, match="neurotoxin sees no honest update"):
        neurotoxin(torch.zeros(0, 4), own=torch.ones(2, 4), b=2)


def test_a_share_that_rounding_would_lower() -> None:
    # 0.29 * 100 is just below 29 in floating point
    sent = neurotoxin(torch.arange(100.0)[None], own=torch.ones(1, 100), b=1, top=0.29)
    assert int((sent == 0).sum()) == 29


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    own = torch.full((1, 4), 1e30, dtype=dtype)
    previous = torch.tensor([1e30, 0.0, 0.0, 0.0], dtype=dtype)
    sent = neurotoxin(previous[None], own=own, b=len(own), top=0.25, bound=3.0)
    torch.testing.assert_close(sent, torch.tensor([[0.0] + [3.0**0.5] * 3], dtype=dtype))
    assert bool(own.all())


@pytest.mark.parametrize(("option", "value"), [("top", 1.0), ("top", -0.1), ("bound", 0.0)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}: should be"):
        build("neurotoxin", {option: value})
