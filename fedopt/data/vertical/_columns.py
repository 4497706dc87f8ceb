"""The axis that is cut, and the checks that vertical partitions share."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.registry import ConfigError


def cut_axis(x: Tensor, axis: int) -> int:
    """`axis` of `x [S, ...]` counted from the front, so 1 or more."""
    if not -x.dim() < axis < x.dim() or axis == 0:
        raise ConfigError(
            "data.vertical.axis",
            f"an axis of features was needed, 1 to {x.dim() - 1} or -1 for the last, of samples {list(x.shape)};"
            f" {axis} was given",
        )
    return axis % x.dim()


def column_count(x: Tensor, axis: int, parties: int) -> int:
    """How many columns `x` has along `axis`, if every party can have one."""
    columns = x.shape[cut_axis(x, axis)]
    if parties < 1:
        raise ConfigError("data.clients", f"at least 1 was needed, {parties} was given")
    if parties > columns:
        raise ConfigError(
            "data.clients",
            f"{parties} was given, and there are {columns} columns along axis {cut_axis(x, axis)} of samples"
            f" {list(x.shape)}; lower data.clients, or cut another axis with data.vertical.axis",
        )
    return columns


def table_columns(x: Tensor, parties: int, partition: str) -> int:
    """How many columns a table `x [S, d]` has; anything else is refused."""
    if x.dim() != 2:
        raise ConfigError(
            "data.vertical.name",
            f"'{partition}' is for tables [samples, columns], the samples are {list(x.shape)}; use even or by_size",
        )
    return column_count(x, 1, parties)


def equal_sizes(columns: int, parties: int) -> Tensor:
    """Sizes that differ by at most one, int64 `[parties]`."""
    return torch.bincount(torch.arange(columns) * parties // columns, minlength=parties)


def dealt(order: Tensor, sizes: Tensor) -> list[Tensor]:
    """`order [columns]` dealt out in parts of these sizes, each increasing."""
    return [part.sort().values for part in order.split(sizes.tolist())]
