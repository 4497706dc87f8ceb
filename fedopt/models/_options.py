"""Types of options that several networks have, and the check of a sample's shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Norm = Literal["group", "batch"]


def sizes(inputs: tuple[int, ...], *axes: str, least: int = 1) -> tuple[int, ...]:
    """`inputs`, if it has these axes, all but the first of at least this size; else a ValueError."""
    if len(inputs) != len(axes) or any(size < least for size in inputs[1:]):
        size = f" with {' and '.join(axes[1:])} of at least {least}" if least > 1 else ""
        raise ValueError(f"samples of shape [{', '.join(axes)}]{size} are needed")
    return inputs
