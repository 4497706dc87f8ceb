"""Top-K against a sort, its ties, and the search of long vectors through a sample."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression import Kept, Sparse, build
from fedopt.compression.topk import LONG, SAMPLE, topk
from fedopt.registry import ConfigError

KEY = keys.root(0)


def loop(x: list[float], k: int) -> list[float]:
    order = sorted(range(len(x)), key=lambda i: (-abs(x[i]), i))
    chosen = set(order[:k])
    return [x[i] if i in chosen else 0.0 for i in range(len(x))]


def back(x: Tensor, **options: float) -> list[float]:
    codec = build("topk", options)
    found: list[float] = codec.decode(codec.encode(x, KEY), x.numel()).tolist()
    return found


def test_equals_the_sort_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        d = draw.randint(1, 30)
        k = draw.randint(1, d)
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        assert back(x, count=k) == loop(x.tolist(), k)


def test_of_equal_magnitudes_the_first_ones_are_kept() -> None:
    draw = random.Random(1)
    for _ in range(100):
        d = draw.randint(1, 30)
        k = draw.randint(1, d)
        x = torch.tensor([float(draw.randint(-2, 2)) for _ in range(d)])
        assert back(x, count=k) == loop(x.tolist(), k)
    assert back(torch.tensor([1.0, -2.0, 2.0, -2.0, 2.0]), count=3) == [0.0, -2.0, 2.0, -2.0, 0.0]


def test_the_payload_byte_by_byte() -> None:
    x = torch.tensor([0.25, 5.0, 0.0, 0.0, 0.5, -1.5, 0.0, 0.0])
    # Gaps 1 and 3, whose Rice parameter is 1: quotients 0 and 1 are "1" and "01", least significant first, and the low
    # bits are 1 and 1.
    wanted = bytes.fromhex("01 02000000 01 01000000 05 03 0000a040 0000c0bf")
    assert build("topk", {"count": 2}).encode(x, KEY) == wanted
    # three of four would be longer with their positions
    assert build("topk", {"count": 3}).encode(torch.tensor([1.0, 2.0, -4.0, 0.5]), KEY) == bytes.fromhex(
        "00 0000803f 00000040 000080c0 00000000"
    )


@pytest.mark.parametrize(
    ("options", "d", "k"),
    [
        ({"share": 0.01}, 10, 1),
        ({"share": 0.25}, 10, 2),
        ({"share": 1.0}, 10, 10),
        ({"count": 99}, 10, 10),
        ({"count": 4}, 10, 4),
    ],
)
def test_how_many_are_kept(options: dict[str, float], d: int, k: int) -> None:
    assert sum(value != 0 for value in back(torch.arange(1.0, d + 1.0), **options)) == k


def test_the_stated_bound_holds_and_is_reached() -> None:
    for name, x in (("normal", keys.normal(KEY, 200)), ("flat", torch.ones(200))):
        for k in (1, 20, 199):
            sq_error = float((torch.tensor(back(x, count=k)) - x).square().sum())
            bound = (1 - k / 200) * float(x.square().sum())
            assert sq_error == pytest.approx(bound, rel=1e-6) if name == "flat" else sq_error < bound


def normal() -> Tensor:
    return keys.normal(KEY, LONG)


def odd_length() -> Tensor:
    return keys.normal(KEY, LONG + 12345)


def levels() -> Tensor:
    return (3.0 * keys.normal(KEY, LONG)).round()


def ones() -> Tensor:
    return torch.ones(LONG)


def large_where_the_sample_is() -> Tensor:
    """The bound from the sample is far too high, so the others have to be looked at as well."""
    x = keys.normal(KEY, LONG)
    x[:: LONG // SAMPLE] *= 1000.0
    return x


def large_between_the_sample() -> Tensor:
    x = keys.normal(KEY, LONG)
    x[1 :: LONG // SAMPLE] *= 1000.0
    return x


def mostly_zero() -> Tensor:
    x = torch.zeros(LONG)
    x[torch.arange(7, LONG, 2500)] = torch.arange(7, LONG, 2500) - 60000.0
    return x


@pytest.mark.parametrize(
    "vector",
    [normal, odd_length, levels, ones, large_where_the_sample_is, large_between_the_sample, mostly_zero],
    ids=lambda vector: vector.__name__,
)
@pytest.mark.parametrize("k", [1, 100, LONG // 10])
def test_a_long_vector_alone_has_the_bytes_of_one_among_others(vector: Callable[[], Tensor], k: int) -> None:
    x = vector()
    codec = build("topk", {"count": k})
    code = codec.compress(x, KEY)
    payload = codec.encode(x, KEY)
    assert torch.equal(codec.decode(payload, x.numel()), code["kept"])
    assert payload == Sparse().write(code["kept"])
    assert len(payload) == int(codec.size(code, x.numel()))


def test_the_search_through_a_sample_is_taken_from_a_length_on() -> None:
    assert isinstance(topk(count=10).alone(keys.normal(KEY, LONG), KEY)["kept"], Kept)
    assert isinstance(topk(count=10).alone(keys.normal(KEY, LONG - 1), KEY)["kept"], Tensor)
    # where much is kept, a sample saves nothing
    assert isinstance(topk(share=0.2).alone(keys.normal(KEY, LONG), KEY)["kept"], Tensor)


def test_a_buffer_holds_nothing_of_what_it_held() -> None:
    for d in (20, LONG):
        codec = build("topk", {"count": 2})
        x = keys.normal(KEY, d)
        out = torch.full((d,), 7.0)
        payload = codec.encode(x, KEY)
        assert codec.decode(payload, d, out) is out
        assert torch.equal(out, codec.decode(payload, d))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topk", {}, r"compression: topk: give one of count and share"),
        ("topk", {"count": 2, "share": 0.5}, r"compression: topk: give one of count and share"),
        (
            "topk",
            {"shar": 0.5},
            r"compression\.shar: unknown option\. Did you mean 'share'\? Options: count: .*share: ",
        ),
        ("topk", {"count": 0}, r"compression\.count: should be greater than or equal to 1"),
        ("topk", {"count": 1.5}, r"compression\.count: should be a valid integer; 1\.5 was given"),
        ("topk", {"share": 0.0}, r"compression\.share: should be greater than 0"),
        ("topk", {"share": 1.1}, r"compression\.share: should be less than or equal to 1; 1\.1 was given"),
        ("topkk", {"count": 1}, r"compression\.name: no compression component 'topkk'\. Did you mean 'topk'\?"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options)
