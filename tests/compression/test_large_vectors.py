"""Ten million entries through every codec: the bytes are as many as said, and contractions keep their promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt import keys
from fedopt.compression import lift, registry
from fedopt.registry import facts
from fedopt.types import Codec

D = 10_000_000
CASES = [(name, options) for name in registry.builtin() for options in facts(registry.get(name)).get("examples", ({},))]


def there_and_back(codec: Codec, x: torch.Tensor) -> torch.Tensor:
    offers = {"shared": keys.root(9), "rank": torch.tensor(1), "kept": codec.start(D)}
    asked = {name: offers[name] for name in codec.asks}
    payload = codec.encode(x, keys.root(0), **asked)
    assert len(payload) == int(codec.size(codec.compress(x, keys.root(0), **asked), D))
    back = codec.decode(payload, D)
    assert back.shape == (D,) and bool(torch.isfinite(back).all())
    return back


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}({options})" for name, options in CASES])
def test_ten_million_entries(name: str, options: dict[str, Any]) -> None:
    codec = lift(registry.get(name), options)
    one = torch.zeros(D)
    one[D // 3] = -2.5
    back = there_and_back(codec, torch.zeros(D))
    assert codec.kind == "biased" or not bool(back.any())
    there_and_back(codec, one)
    x = keys.normal(keys.root(3), D)
    back, promised = there_and_back(codec, x), codec.error(D)
    if codec.kind in ("exact", "contraction") and promised is not None:
        # a single draw: over so many entries it is close to the mean that the promise is about
        assert float((back.double() - x.double()).square().sum() / x.double().square().sum()) <= 1.001 * promised
