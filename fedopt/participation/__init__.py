"""Who takes part in an exchange, and how many.

A selector is a frozen dataclass of options with the methods of `fedopt.types.Participation`. What it says about
itself, with `fedopt.registry.declare`:

    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the selector lawfully breaks, each with the reason
    sampling    "uniform" where every set of `head_count` clients is equally likely, anew in each exchange;
                "independent" where the choice is another one, but never depends on anybody's data; [privacy] asks
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedopt.registry import Registry
from fedopt.types import Participation

registry = Registry("participation", __name__)


def build(name: str, options: Mapping[str, Any], where: str = "participation") -> Participation:
    """The selector of this name with these options; `where` is their config path, for messages."""
    return cast(Participation, registry.build(name, options, where))
