"""Block quantisation against a loop, the stated error of each entry, and nibbles on the wire."""

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


def loop(x: list[float], key: Tensor, bits: int, block: int, rounding: str) -> list[float]:
    d, most = len(x), 2 ** (bits - 1) - 1
    drawn = keys.uniform(key, d).tolist()
    result = []
    for i in range(d):
        start = i // block * block
        step = max(abs(v) for v in x[start : start + block]) / most
        if step == 0.0:
            result.append(0.0)
            continue
        steps = abs(x[i]) / step
        whole = round(steps) if rounding == "nearest" else math.floor(steps + drawn[i])
        result.append(math.copysign(min(whole, most) * step, x[i]))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key = draw.randint(1, 20), keys.root(seed)
        bits, block = draw.choice([4, 8]), draw.choice([1, 3, 5, 64])
        rounding = draw.choice(["nearest", "stochastic"])
        x = torch.tensor([draw.gauss(0, 1) * draw.choice([0.0, 1.0, 1.0]) for _ in range(d)])
        codec = build("blocks", {"bits": bits, "block": block, "rounding": rounding})
        got = codec.decode(codec.encode(x, key), d)
        wanted = torch.tensor(loop(x.tolist(), key, bits, block, rounding))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    # steps of 1: 7 -7 3 0 and 7 more, 14 0 10 7, two in a byte with the first in its lower half
    x = torch.tensor([7.0, -7.0, 3.0, 0.0])
    assert build("blocks", {"bits": 4}).encode(x, KEY) == bytes.fromhex("0000e040 0e7a")
    # two blocks, the last of them shorter; steps of 1 and of 2, and 127 more
    x = torch.tensor([127.0, -2.0, 254.0])
    assert build("blocks", {"block": 2}).encode(x, KEY) == bytes.fromhex("0000fe42 00007e43 fe7dfe")


@pytest.mark.parametrize(("d", "bits", "size"), [(64, 8, 68), (65, 8, 73), (64, 4, 36), (65, 4, 41)])
def test_a_float_for_each_block_and_the_bits_of_each_entry(d: int, bits: int, size: int) -> None:
    assert len(build("blocks", {"bits": bits}).encode(torch.ones(d), KEY)) == size


def normals(d: int) -> Tensor:
    return keys.normal(KEY, d) ** 3


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_no_entry_is_off_by_more_than_its_step(bits: int, rounding: str) -> None:
    x = normals(1000)
    codec = build("blocks", {"bits": bits, "block": 10, "rounding": rounding})
    off = (codec.decode(codec.encode(x, KEY), 1000) - x).abs().reshape(100, 10)
    step = x.abs().reshape(100, 10).amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    limit = 0.5 if rounding == "nearest" else 1.0
    assert 0.8 * limit < float((off / step).max()) <= limit * (1 + 1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_within_the_promise(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    # the worst is one entry that sets the step, and others half a step from what there is
    worst = torch.full((20,), 0.5 / most)
    worst[0] = 1.0
    for rounding in ("nearest", "stochastic"):
        codec = build("blocks", {"bits": bits, "rounding": rounding})
        promised = codec.error(20)
        assert promised == pytest.approx(20 / (4 * most**2))
        assert promised is not None
        for x in (worst, normals(20), torch.ones(20)):

            def one(key: Tensor, x: Tensor = x, codec: object = codec) -> Tensor:
                return codec.restore(codec.compress(x, key), 20)  # type: ignore[attr-defined,no-any-return]

            found = vmap(one)(keys.fold(KEY, torch.arange(2000)))
            sq_error = float((found - x).square().sum(dim=1).mean() / x.square().sum())
            assert sq_error <= promised * 1.02
            if x is worst:
                assert sq_error > 0.8 * promised


def test_the_mean_is_right_where_rounding_is_drawn() -> None:
    x = normals(12)
    codec = build("blocks", {"bits": 4, "block": 5, "rounding": "stochastic"})
    found = vmap(lambda key: codec.restore(codec.compress(x, key), 12))(keys.fold(KEY, torch.arange(10000)))
    spread = found.std(dim=0) / 100.0
    assert bool(((found.mean(dim=0) - x).abs() <= 6.0 * spread + 1e-5).all())
    assert (codec.kind, build("blocks", {}).kind) == ("unbiased", "contraction")


def test_blocks_do_not_know_of_each_other() -> None:
    x = normals(20)
    louder = x.clone()
    louder[8:] *= 1e6
    codec = build("blocks", {"block": 8})
    one, other = (codec.decode(codec.encode(vector, KEY), 20) for vector in (x, louder))
    assert torch.equal(one[:8], other[:8])


def test_the_number_that_is_left_over_is_the_largest() -> None:
    # 15 (and 255) are written by nobody
    codec = build("blocks", {"bits": 4})
    assert codec.decode(bytes.fromhex("0000e040 ff"), 2).tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, r"compression\.bits: .*4 or 8; 5 was given"),
        ({"block": 0}, r"compression\.block: should be greater than or equal to 1"),
        ({"rounding": "up"}, r"compression\.rounding: .*'nearest' or 'stochastic'; 'up' was given"),
        ({"blok": 5}, r"compression\.blok: unknown option\. Did you mean 'block'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("blocks", options)
