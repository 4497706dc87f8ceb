"""How many of d entries a codec keeps."""

from __future__ import annotations

from typing import Annotated

import pydantic

Count = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]


def check(count: int | None, share: float | None) -> None:
    """Raises ValueError unless one of the two is given."""
    if (count is None) == (share is None):
        raise ValueError("give one of count and share")


def kept(numel: int, count: int | None, share: float | None) -> int:
    """`count` or round(share · d), 1 at the least and d at the most."""
    wanted = count if count is not None else round((share or 0.0) * numel)
    return min(max(wanted, 1), numel)
