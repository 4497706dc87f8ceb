"""Signs against a loop, their bytes, and the error as stated."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)
MEAN, ONE = build("sign", {}), build("sign", {"scale": "one"})


def loop(x: list[float], scale: str) -> list[float]:
    magnitude = sum(abs(value) for value in x) / len(x) if scale == "mean" else 1.0
    return [-magnitude if value < 0 else magnitude for value in x]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        d = draw.randint(1, 20)
        x = torch.tensor([draw.choice([0.0, 1.0, 1.0]) * draw.gauss(0, 1) for _ in range(d)])
        for codec, scale in ((MEAN, "mean"), (ONE, "one")):
            got = codec.decode(codec.encode(x, KEY), d)
            torch.testing.assert_close(got, torch.tensor(loop(x.tolist(), scale)), rtol=1e-6, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    x = torch.tensor([1.0, -2.0, 0.0, -1.0, 4.0, 0.0, 0.0, 0.0, -8.0, -0.0])
    # negative are entries 1, 3 and 8, least significant bit first; the magnitudes have the mean 1.6
    assert MEAN.encode(x, KEY) == bytes.fromhex("cdcccc3f 0a01")
    assert ONE.encode(x, KEY) == bytes.fromhex("0a01")


@pytest.mark.parametrize("d", [1, 8, 9, 1000])
def test_one_bit_for_each_entry_and_a_float(d: int) -> None:
    assert len(MEAN.encode(torch.ones(d), KEY)) == -(-d // 8) + 4
    assert len(ONE.encode(torch.ones(d), KEY)) == -(-d // 8)


def test_the_error_is_as_stated_and_within_the_bound() -> None:
    for seed in range(100):
        d = seed % 20 + 1
        x = keys.normal(keys.root(seed), d, dtype=torch.float64)
        got = MEAN.decode(MEAN.encode(x, KEY), d).double()
        one, sq = float(x.abs().sum()), float(x.square().sum())
        assert float((got - x).square().sum()) == pytest.approx((1 - one**2 / (d * sq)) * sq, rel=1e-5, abs=1e-6 * sq)
        assert float((got - x).square().sum()) <= (1 - 1 / d) * sq + 1e-6 * sq
    # one entry alone reaches it
    x = torch.zeros(10)
    x[3] = 2.0
    assert float((MEAN.decode(MEAN.encode(x, KEY), 10) - x).square().sum()) == pytest.approx(0.9 * 4.0)
    assert MEAN.error(10) == 0.9


def test_bare_signs_say_nothing_of_the_size() -> None:
    assert (MEAN.kind, ONE.kind) == ("contraction", "biased")
    assert ONE.error(10) == float("inf")
    x = keys.normal(KEY, 50)
    assert ONE.encode(x, KEY) == ONE.encode(1e-20 * x, KEY)


def test_the_mean_of_the_largest_floats_is_finite() -> None:
    x = torch.tensor([3e38, -3e38, 3e38, 3e38])
    torch.testing.assert_close(MEAN.decode(MEAN.encode(x, KEY), 4), x, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "median"}, r"compression\.scale: .*'mean' or 'one'; 'median' was given"),
        ({"scal": "one"}, r"compression\.scal: unknown option\. Did you mean 'scale'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("sign", options)
