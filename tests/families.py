"""Strategies of one family share their engine: a few of them stand for the others beside the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from fedopt import strategies

STANDING = ("c_aeg", "acc_vrcs", "olga", "s_dane")
"""Of those that ask questions: nested, epochs, compressed, proximal steps at clients."""


def few(names: Iterable[str], standing: Iterable[str] = STANDING) -> list[Any]:
    """The names, those of the family that others stand for marked as slow."""

    def stands(name: str) -> bool:
        return name in standing or not hasattr(strategies.registry.get(name), "proceed")

    return [name if stands(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]
