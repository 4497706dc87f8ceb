"""One codec after another: what comes back, whose bytes they are, and what may follow what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt import keys
from fedopt.compression import build, registry
from fedopt.registry import ConfigError, facts
from fedopt.types import Codec

KEY = keys.root(0)
TOPK, QSGD, NATURAL = {"name": "topk", "share": 0.2}, {"name": "qsgd", "bucket": 16}, {"name": "natural"}
EXACT, HALF, RANDK = {"name": "none"}, {"name": "fp16"}, {"name": "randk", "count": 3}


def compose(first: Any, then: Any) -> Codec:
    return build("compose", {"first": first, "then": then})


def part(table: dict[str, Any]) -> Codec:
    return build(table["name"], {name: value for name, value in table.items() if name != "name"})


@pytest.mark.parametrize("first", [TOPK, RANDK, QSGD, {"name": "sign"}, {"name": "sketch", "columns": 9}])
@pytest.mark.parametrize("then", [QSGD, NATURAL, HALF, EXACT, TOPK, RANDK])
def test_equals_the_second_of_the_first(first: dict[str, Any], then: dict[str, Any]) -> None:
    for seed in range(10):
        key = keys.root(seed)
        x = keys.normal(keys.fold(key, 5), 40)
        one, other = part(first), part(then)
        between = one.decode(one.encode(x, keys.fold(key, 0)), 40)
        payload = other.encode(between, keys.fold(key, 1))
        codec = compose(first, then)
        assert codec.encode(x, key) == payload
        assert torch.equal(codec.decode(payload, 40), other.decode(payload, 40))


def test_the_payload_byte_by_byte() -> None:
    # one half-precision number of 16 entries, after a gap of 2 with the Rice parameter 3
    x = torch.full((16,), 0.5)
    x[2] = -2.0
    payload = compose({"name": "topk", "count": 1}, HALF).encode(x, KEY)
    assert payload == bytes.fromhex("01 01000000 03 01000000 01 02 00c0")


def test_few_entries_make_few_bytes() -> None:
    x = keys.normal(KEY, 10000)
    share, bucket = {"name": "topk", "share": 0.01}, {"name": "qsgd", "bucket": None}
    # positions take 8 bits or so for each of the hundred, and levels and signs a few more
    assert len(compose(share, bucket).encode(x, KEY)) < 100 * (8 + 8) / 8 + 30
    assert len(compose(share, HALF).encode(x, KEY)) < 100 * (8.5 + 16) / 8 + 10


def test_a_part_of_a_part() -> None:
    x = keys.normal(KEY, 100)
    codec = compose({"name": "compose", "first": TOPK, "then": QSGD}, HALF)
    got = codec.decode(codec.encode(x, KEY), 100)
    assert 0 < int((got != 0).sum()) <= 20


@pytest.mark.parametrize(
    ("first", "then", "kind", "error"),
    [
        (EXACT, EXACT, "exact", 0.0),
        (RANDK, NATURAL, "unbiased", "both"),
        (EXACT, QSGD, "unbiased", "then"),
        (RANDK, EXACT, "unbiased", "first"),
        (TOPK, EXACT, "contraction", "first"),
        (EXACT, HALF, "contraction", "then"),
        (TOPK, QSGD, "biased", None),
        (TOPK, HALF, "biased", None),
        ({"name": "sign", "scale": "one"}, EXACT, "biased", None),
    ],
)
def test_kind_and_error_follow_from_the_parts(
    first: dict[str, Any], then: dict[str, Any], kind: str, error: float | str | None
) -> None:
    codec = compose(first, then)
    assert codec.kind == kind
    alone = {
        which: build(table["name"], {n: v for n, v in table.items() if n != "name"}).error(50)
        for which, table in (("first", first), ("then", then))
    }
    if error == "both":
        error = (1.0 + alone["first"]) * (1.0 + alone["then"]) - 1.0
    elif isinstance(error, str):
        error = alone[error]
    assert codec.error(50) == (error if error is None else pytest.approx(error))


def test_the_error_of_two_unbiased_ones_is_kept() -> None:
    codec = compose(RANDK, NATURAL)
    x = keys.normal(keys.root(0), 50)
    far = [float((codec.decode(codec.encode(x, keys.root(s)), 50) - x).square().sum()) for s in range(400)]
    assert 0.8 * codec.error(50) < sum(far) / 400 / float(x.square().sum()) < 1.05 * codec.error(50)


SECONDS = [
    (name, dict(options))
    for name in registry.builtin()
    if facts(registry.get(name)).get("zeros")
    for options in facts(registry.get(name)).get("examples", ({},))
]


@pytest.mark.parametrize(("name", "options"), SECONDS, ids=lambda value: str(value))
def test_zeros_stay_zero_where_a_codec_says_so(name: str, options: dict[str, Any]) -> None:
    codec = build(name, options)
    for seed in range(5):
        x = keys.normal(keys.root(seed), 60) * (keys.uniform(keys.root(seed + 100), 60) < 0.5)
        offers = {"shared": keys.root(seed), "rank": torch.tensor(1), "kept": codec.start(60)}
        got = codec.decode(codec.encode(x, keys.root(seed), **offers), 60)
        assert bool((got[x == 0] == 0).all())


@pytest.mark.parametrize("name", ["sign", "onebit", "sketch"])
def test_a_second_that_does_not_keep_zeros_is_refused(name: str) -> None:
    then = {"name": name, **({"columns": 3} if name == "sketch" else {})}
    message = f"compression: compose: {name} turns 0 into something else; compose needs a second that keeps 0"
    with pytest.raises(ConfigError, match=message):
        compose(TOPK, then)
    # as the first it does no harm
    compose(then, QSGD)


@pytest.mark.parametrize(
    ("table", "offers"),
    [({"name": "permk", "n": 3}, "rank, shared"), ({"name": "powersgd"}, "kept")],
)
def test_a_part_that_needs_an_offer_is_refused(table: dict[str, Any], offers: str) -> None:
    message = f"compression: compose: {table['name']} needs {offers}, which a part of compose does not get"
    for first, then in ((table, QSGD), (TOPK, table)):
        with pytest.raises(ConfigError, match=message):
            compose(first, then)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": TOPK}, r"compression\.then: missing"),
        ({"first": TOPK, "than": QSGD}, r"compression\.than: unknown option\. Did you mean 'then'\?"),
        ({"first": 3, "then": QSGD}, r"compression\.first: should be an object; 3 was given"),
        ({"first": {}, "then": QSGD}, r"first needs a name, e\.g\. first = \{ name = 'topk', share = 0\.01 \}"),
        ({"first": TOPK, "then": {"levels": 4}}, r"then needs a name, e\.g\. then = \{ name = "),
        ({"first": {"name": "topkk"}, "then": QSGD}, r"first\.name: no compression .*Did you mean 'topk'\?"),
        ({"first": TOPK, "then": {"name": "qsgd", "level": 4}}, r"then\.level: unknown .*Did you mean 'levels'\?"),
        ({"first": {"name": "topk"}, "then": QSGD}, r"first: give one of count and share"),
        ({"first": {"name": "topk", "share": 2.0}, "then": QSGD}, r"first\.share: should be less than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("compose", options)


def test_messages_about_a_part_say_where_it_stands_in_the_file() -> None:
    with pytest.raises(ConfigError) as refusal:
        build("compose", {"first": {"name": "topk", "shar": 0.1}, "then": QSGD}, "compression")
    assert refusal.value.where == "compression.first.shar"


def test_a_name_that_is_no_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="name"):
        compose({"name": 3}, QSGD)
