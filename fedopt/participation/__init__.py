"""Who takes part in an exchange, and how many.

A selector is a frozen dataclass of options with the methods of `fedopt.types.Participation`. What it says about
itself, with `fedopt.registry.declare`:

    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the selector lawfully breaks, each with the reason
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedopt.registry import ConfigError, Registry
from fedopt.types import Participation

registry = Registry("participation", __name__)


def build(name: str, options: Mapping[str, Any], where: str = "participation") -> Participation:
    """The selector of this name with these options.

    where: config path of the options, for messages.

    Raises ConfigError for an unknown name or option, a missing option, one of another type or out of range, and a
    combination that the selector itself refuses.
    """
    component = registry.get(name, f"{where}.name")
    given = registry.validate(name, options, where)
    try:
        return cast(Participation, component(**given))
    except ValueError as error:
        raise ConfigError(where, str(error)) from None
