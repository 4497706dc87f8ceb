"""Codecs: `[d] -> payload -> [d]`, with real bytes.

A codec is a frozen dataclass of options with the methods of `fedopt.types.Codec`. What it says about itself, with
`fedopt.registry.declare`:

    kind        "exact" (float32 comes back bit by bit), "unbiased" (E decode(encode(x)) = x) or "contraction"
                (E ‖decode(encode(x)) - x‖² <= ‖x‖²); the contract tests measure it
    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the codec lawfully breaks, each with the reason
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedopt.registry import Registry
from fedopt.types import Codec

registry = Registry("compression", __name__)


def build(name: str, options: Mapping[str, Any], where: str = "compression") -> Codec:
    """The codec of this name with these options; `where` is their config path, for messages."""
    return cast(Codec, registry.build(name, options, where))
