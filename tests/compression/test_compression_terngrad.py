"""TernGrad against a loop, its variance and its clipping."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)


def loop(x: list[float], key: Tensor, clip: float | None) -> list[float]:
    d = len(x)
    if clip is not None:
        bound = clip * math.sqrt(sum(v * v for v in x) / d)
        x = [max(-bound, min(bound, v)) for v in x]
    most = max(abs(v) for v in x)
    drawn = keys.uniform(key, d).tolist()
    result = []
    for value, u in zip(x, drawn, strict=True):
        present = most > 0 and u >= 1.0 - abs(value) / most
        result.append(math.copysign(most, value) if present else 0.0)
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key, clip = draw.randint(1, 20), keys.root(seed), draw.choice([None, 0.5, 1.0, 2.5])
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        codec = build("terngrad", {"clip": clip})
        got = codec.decode(codec.encode(x, key), d)
        torch.testing.assert_close(got, torch.tensor(loop(x.tolist(), key, clip)), rtol=1e-5, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    # the largest ones are certain: 1 1 0 1 as Rice codes with the parameter 0 are "01", "01", "1", "01", then signs
    x = torch.tensor([2.0, -2.0, 0.0, -2.0])
    assert build("terngrad", {}).encode(x, KEY) == bytes.fromhex("00000040 00 00 01000000 5a 06")


def drawn(x: Tensor, draws: int, **options: object) -> Tensor:
    codec = build("terngrad", options)

    def back(key: Tensor) -> Tensor:
        return codec.restore(codec.compress(x, key), x.numel())

    found: Tensor = vmap(back)(keys.fold(KEY, torch.arange(draws)))
    return found.to(torch.float64)


def test_the_mean_and_the_variance_are_as_stated() -> None:
    d, draws = 12, 20000
    # the last vector is nearly the worst: one large entry, and the others 1 / (1 + sqrt d) of it
    worst = torch.full((d,), 1 / (1 + d**0.5))
    worst[3] = -1.0
    for x in (keys.normal(KEY, d), torch.arange(1.0, d + 1.0), worst):
        found = drawn(x, draws)
        spread = found.std(dim=0) / draws**0.5
        assert bool(((found.mean(dim=0) - x).abs() <= 6.0 * spread + 1e-6).all())
        most, one, sq = float(x.abs().max()), float(x.abs().sum()), float(x.square().sum())
        assert float((found - x).square().sum(dim=1).mean()) == pytest.approx(most * one - sq, rel=0.03)
        assert most * one - sq <= (d**0.5 - 1) * sq
    assert build("terngrad", {}).error(d) == pytest.approx(d**0.5 - 1)
    assert build("terngrad", {}).error(1) == 0.0


def test_clipping_brings_down_the_scale_and_is_biased() -> None:
    x = keys.normal(KEY, 100)
    x[7] = 50.0
    bound = 2.5 * float(x.norm()) / 10.0
    found = drawn(x, 50, clip=2.5)
    assert float(found.abs().max()) == pytest.approx(bound, rel=1e-5)
    assert bool((found[:, 7] > 0).all())
    assert build("terngrad", {"clip": 2.5}).kind == "biased"
    assert build("terngrad", {}).kind == "unbiased"


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**-20, 2.0**20, 2.0**90])
def test_clipping_does_not_depend_on_the_unit(scale: float) -> None:
    x = keys.normal(KEY, 100)
    x[7] = 50.0
    codec = build("terngrad", {"clip": 2.5})
    wanted = codec.decode(codec.encode(x, KEY), 100) * scale
    torch.testing.assert_close(codec.decode(codec.encode(x * scale, KEY), 100), wanted, rtol=1e-5, atol=0.0)


def test_zeros_stay_zero() -> None:
    for options in ({}, {"clip": 2.5}):
        codec = build("terngrad", options)
        assert torch.equal(codec.decode(codec.encode(torch.zeros(5), KEY), 5), torch.zeros(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, r"compression\.clip: should be greater than 0"),
        ({"clip": float("inf")}, r"compression\.clip: should be a finite number"),
        ({"clp": 2.5}, r"compression\.clp: unknown option\. Did you mean 'clip'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("terngrad", options)
