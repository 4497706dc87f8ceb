"""Rand-K: the choice from its seed, how likely each is, and the error."""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter

import pytest
import torch
from torch.func import vmap

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)


def loop(x: list[float], key: torch.Tensor, k: int, scale: bool) -> list[float]:
    words = keys.bits(key, len(x)).tolist()
    chosen = sorted(range(len(x)), key=lambda i: -words[i])[:k]
    factor = len(x) / k if scale else 1.0
    return [factor * x[i] if i in chosen else 0.0 for i in range(len(x))]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d = draw.randint(1, 20)
        k, scale, key = draw.randint(1, d), draw.random() < 0.5, keys.root(seed)
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        codec = build("randk", {"count": k, "scale": scale})
        got = codec.decode(codec.encode(x, key), d)
        torch.testing.assert_close(got, torch.tensor(loop(x.tolist(), key, k, scale)), rtol=1e-6, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    x = torch.arange(1.0, 7.0)
    for seed in range(20):
        key = keys.root(seed)
        kept = [value for value in loop(x.tolist(), key, 2, False) if value]
        payload = build("randk", {"count": 2}).encode(x, key)
        assert payload == struct.pack("<qff", int(key), *kept)  # in their order, before the factor


@pytest.mark.parametrize(("options", "entries"), [({"count": 3}, 3), ({"share": 0.1}, 10), ({"count": 500}, 100)])
def test_eight_bytes_of_seed_and_four_for_each_value(options: dict[str, float], entries: int) -> None:
    assert len(build("randk", options).encode(torch.ones(100), KEY)) == 8 + 4 * entries


def restored(d: int, draws: int, x: torch.Tensor, **options: float) -> torch.Tensor:
    codec = build("randk", options)

    def back(key: torch.Tensor) -> torch.Tensor:
        return codec.restore(codec.compress(x, key), d)

    found: torch.Tensor = vmap(back)(keys.fold(KEY, torch.arange(draws)))
    return found


def test_every_choice_is_about_equally_likely() -> None:
    draws = 20000
    found = restored(5, draws, torch.ones(5), count=2, scale=False)
    seen = Counter(tuple(torch.nonzero(row).flatten().tolist()) for row in found)
    assert set(seen) == set(itertools.combinations(range(5), 2))
    wanted = draws / 10
    # six standard errors of a binomial count
    assert max(abs(count - wanted) for count in seen.values()) < 6 * (wanted * 0.9) ** 0.5


def test_the_mean_and_the_error_are_as_stated() -> None:
    x, draws = keys.normal(KEY, 12), 20000
    sq_norm = float(x.square().sum())
    scaled = restored(12, draws, x, count=3)
    torch.testing.assert_close(scaled.mean(dim=0), x, rtol=0.0, atol=0.12)
    assert float((scaled - x).square().sum(dim=1).mean()) == pytest.approx((12 / 3 - 1) * sq_norm, rel=0.05)
    bare = restored(12, draws, x, count=3, scale=False)
    assert float((bare - x).square().sum(dim=1).mean()) == pytest.approx((1 - 3 / 12) * sq_norm, rel=0.02)
    assert build("randk", {"count": 3}).error(12) == 12 / 3 - 1
    assert build("randk", {"count": 3, "scale": False}).error(12) == 1 - 3 / 12


def test_all_of_the_entries_are_the_vector() -> None:
    assert torch.equal(restored(12, 5, torch.arange(12.0), share=1.0), torch.arange(12.0).expand(5, 12))


def test_it_is_unbiased_with_the_factor_and_a_contraction_without() -> None:
    assert build("randk", {"count": 3}).kind == "unbiased"
    assert build("randk", {"count": 3, "scale": False}).kind == "contraction"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"compression: randk: give one of count and share"),
        ({"count": 2, "share": 0.5}, r"compression: randk: give one of count and share"),
        ({"count": 2, "scal": False}, r"compression\.scal: unknown option\. Did you mean 'scale'\?"),
        ({"count": 2, "scale": 1}, r"compression\.scale: should be a valid boolean; 1 was given"),
        ({"share": 2.0}, r"compression\.share: should be less than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("randk", options)
