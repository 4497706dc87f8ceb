"""Packages that only one source needs."""

from __future__ import annotations

import importlib
from typing import Any

from fedopt.registry import ConfigError


def optional(module: str, extra: str) -> Any:
    """The imported module, or a ConfigError that names the extra of fedopt that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "data.name",
            f"this source needs the package '{module}' ({error}); install it with pip install 'fedopt[{extra}]'",
        ) from error
