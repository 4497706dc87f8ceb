"""Labels of any kind -> class indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedopt.data._paths import wrong_file


def classes_of(labels: Sequence[str]) -> tuple[str, ...]:
    """The different labels, sorted: as numbers if all are numbers, else as words."""
    different = set(labels)
    try:
        return tuple(sorted(different, key=float))
    except ValueError:
        return tuple(sorted(different))


def class_indices(labels: Sequence[str], names: Sequence[str], path: Path | str, where: str) -> Tensor:
    """Index of each label in `names`, int64 `[S]`; a label that is not among them is a ConfigError."""
    index = {name: i for i, name in enumerate(names)}
    unknown = sorted(set(labels) - index.keys())
    if unknown:
        raise wrong_file(
            path, where, f"the classes of the training data ({', '.join(names)})", f"also {', '.join(unknown[:5])}"
        )
    return torch.tensor([index[label] for label in labels], dtype=torch.int64)
