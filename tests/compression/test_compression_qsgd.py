"""QSGD against a loop over buckets, its stated error, and its levels on the wire."""

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


def loop(x: list[float], key: Tensor, levels: int, bucket: int | None, norm: str) -> list[float]:
    d = len(x)
    size = d if bucket is None else min(bucket, d)
    drawn = keys.uniform(key, -(-d // size) * size).tolist()
    result = []
    for i in range(d):
        start = i // size * size
        part = x[start : start + size]
        length = max(abs(v) for v in part) if norm == "max" else math.sqrt(sum(v * v for v in part))
        level = math.floor(levels * abs(x[i]) / length + drawn[i]) if length > 0 else 0
        result.append(length * math.copysign(min(level, levels) / levels, x[i]))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key = draw.randint(1, 20), keys.root(seed)
        levels, norm = draw.choice([1, 2, 3, 16, 255]), draw.choice(["l2", "max"])
        bucket = draw.choice([None, 1, 4, 7, 512])
        x = torch.tensor([draw.gauss(0, 1) * draw.choice([0.0, 1.0, 1.0]) for _ in range(d)])
        codec = build("qsgd", {"levels": levels, "bucket": bucket, "norm": norm})
        got = codec.decode(codec.encode(x, key), d)
        wanted = torch.tensor(loop(x.tolist(), key, levels, bucket, norm))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    # Alone in its bucket an entry is the norm. Magnitudes 0 4 0 0 have the Rice parameter 0, and are "1", "00001", "1"
    # and "1", least significant first; then the sign of the one that is not 0.
    codec = build("qsgd", {"levels": 4, "bucket": None})
    assert codec.encode(torch.tensor([0.0, -2.0, 0.0, 0.0]), KEY) == bytes.fromhex("00000040 00 00 01000000 e1 01")
    # two buckets of "max" have two norms, and these levels are whole before they are rounded
    codec = build("qsgd", {"levels": 2, "bucket": 2, "norm": "max"})
    # magnitudes 1 2 2 0: "01", "001", "001", "1"
    assert codec.encode(torch.tensor([0.5, 1.0, 8.0, 0.0]), KEY) == bytes.fromhex(
        "0000803f 00000041 00 00 02000000 9201 00"
    )


def restored(x: Tensor, draws: int, **options: object) -> Tensor:
    codec = build("qsgd", options)

    def back(key: Tensor) -> Tensor:
        return codec.restore(codec.compress(x, key), x.numel())

    found: Tensor = vmap(back)(keys.fold(KEY, torch.arange(draws)))
    return found.to(torch.float64)


def variances(x: list[float], levels: int, length: float) -> list[float]:
    """An entry at a part f of the way from one level to the next varies by f (1 - f) squares of their distance."""
    result = []
    for value in x:
        share = levels * abs(value) / length
        part = share - math.floor(share)
        result.append(part * (1.0 - part) * (length / levels) ** 2)
    return result


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", [1, 4, 16])
def test_the_mean_is_right_and_the_error_within_the_stated_bound(norm: str, levels: int) -> None:
    for x in (keys.normal(KEY, 30), torch.ones(30), torch.arange(30.0), keys.normal(KEY, 30) ** 3):
        found = restored(x, 3000, levels=levels, bucket=None, norm=norm)
        values = x.tolist()
        sq_norm = sum(v * v for v in values)
        length = math.sqrt(sq_norm) if norm == "l2" else max(abs(v) for v in values)
        spread = variances(values, levels, length)
        wanted = sum(spread)
        for got, value, square in zip(found.mean(dim=0).tolist(), values, spread, strict=True):
            # six standard errors, and one draw more, for levels that are hardly ever drawn
            assert abs(got - value) <= 6.0 * math.sqrt(square / 3000) + length / levels / 3000 + 1e-6 * length
        assert float((found - x).square().sum(dim=1).mean()) == pytest.approx(wanted, rel=0.1, abs=1e-9)
        bound = min(30 / levels**2, 30**0.5 / levels) if norm == "l2" else 30 / (4 * levels**2)
        assert wanted <= bound * sq_norm
        promised = build("qsgd", {"levels": levels, "bucket": None, "norm": norm}).error(30)
        assert promised == pytest.approx(bound)


def test_the_promise_is_that_of_a_bucket_and_of_a_short_vector() -> None:
    assert build("qsgd", {"levels": 4, "bucket": 9}).error(1000) == pytest.approx(min(9 / 16, 3 / 4))
    assert build("qsgd", {"levels": 4, "bucket": 900}).error(4) == pytest.approx(min(4 / 16, 2 / 4))


def test_buckets_do_not_know_of_each_other() -> None:
    codec = build("qsgd", {"levels": 4, "bucket": 8})
    x = keys.normal(KEY, 20)
    louder = x.clone()
    louder[8:] *= 1e6
    one, other = (codec.decode(codec.encode(vector, KEY), 20) for vector in (x, louder))
    assert torch.equal(one[:8], other[:8])
    assert not torch.equal(one[8:], other[8:])


def test_a_bucket_of_zeros_stays_zero() -> None:
    codec = build("qsgd", {"bucket": 4})
    x = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    assert torch.equal(codec.decode(codec.encode(x, KEY), 5), x)


def test_levels_are_whole_and_not_above_the_number_of_them() -> None:
    codec = build("qsgd", {"levels": 16, "bucket": 32, "norm": "max"})
    level = codec.compress(keys.normal(KEY, 1000), KEY)["level"]
    assert level.dtype == torch.int32
    assert int(level.abs().max()) == 16


def test_an_entry_alone_in_its_bucket_comes_back_whatever_is_drawn() -> None:
    # with so many levels, the sum of a level and of a part of one is rounded up to the next now and then
    codec = build("qsgd", {"levels": 1 << 20, "bucket": 1})
    x = keys.normal(KEY, 1000)
    assert torch.equal(codec.decode(codec.encode(x, KEY), 1000), x)


def test_nothing_becomes_nan_where_a_norm_is_above_all_floats() -> None:
    codec = build("qsgd", {})
    x = torch.full((4,), 3e38)
    assert not bool(torch.isnan(codec.decode(codec.encode(x, KEY), 4)).any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, r"compression\.levels: should be greater than or equal to 1"),
        ({"levels": 1 << 21}, r"compression\.levels: should be less than or equal to 1048576"),
        ({"bucket": 0}, r"compression\.bucket: should be greater than or equal to 1"),
        ({"norm": "l1"}, r"compression\.norm: .*'l2' or 'max'; 'l1' was given"),
        ({"level": 4}, r"compression\.level: unknown option\. Did you mean 'levels'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("qsgd", options)
