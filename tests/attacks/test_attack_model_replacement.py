"""Model replacement: the boost, the bound, and that the server ends up with the attacker's model."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedopt.attacks import build
from fedopt.attacks.model_replacement import model_replacement
from fedopt.registry import ConfigError


def test_equals_the_loop_on_random_draws() -> None:
    draw, cut = random.Random(19), 0
    for _ in range(100):
        n, d = draw.randint(1, 20), draw.randint(1, 6)
        b, lr = draw.randint(1, n), draw.uniform(0.1, 2)
        scale, bound = draw.choice([None, draw.uniform(0.1, 20)]), draw.choice([None, draw.uniform(1, 50)])
        own = [[draw.gauss(0, 3) for _ in range(d)] for _ in range(b)]
        gamma = n / (b * lr) if scale is None else scale
        wanted = []
        for row in own:
            length = math.sqrt(sum((gamma * x) ** 2 for x in row))
            cut += bound is not None and length > bound
            shrink = bound / length if bound is not None and length > bound else 1.0
            wanted.append([shrink * gamma * x for x in row])
        got = model_replacement(
            torch.tensor(own, dtype=torch.float64), b=b, n=n, scale=scale, server_lr=lr, bound=bound
        )
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert cut > 20


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("lr", [1.0, 0.1])
def test_the_new_model_is_the_mean_of_the_attackers_models(b: int, lr: float) -> None:
    # the honest updates add up to nothing, as near convergence
    honest = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64)
    model = torch.tensor([5.0, 7.0], dtype=torch.float64)
    local = torch.randn(b, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sent = model_replacement(local - model, b=b, n=4 + b, server_lr=lr)
    after = model + lr * torch.cat([honest, sent]).mean(0)
    torch.testing.assert_close(after, local.mean(0))


def test_zeros_are_sent_as_they_are() -> None:
    assert model_replacement(torch.zeros(2, 3), b=2, n=9, bound=1.0).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    own = torch.full((2, 4), 1e30, dtype=dtype)
    sent = model_replacement(own, b=2, n=10, bound=8.0)
    torch.testing.assert_close(sent, torch.full((2, 4), 4.0, dtype=dtype))
    assert bool(model_replacement(own, b=2, n=10).isfinite().all()) and bool((own == own[0, 0]).all())


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^attack: model_replacement: server_lr has no effect beside a scale"):
        build("model_replacement", {"scale": 3.0, "server_lr": 0.5})
    for option in ("scale", "server_lr", "bound"):
        with pytest.raises(ConfigError, match=rf"attack\.{option}: should be greater than 0"):
            build("model_replacement", {option: 0.0})
