"""Vertical partitions: which columns belong to which party.

A vertical partition is a function `name(x, y, parties, key, *, ...options) -> list[Tensor]`: `x [S, ...]` and
`y [S, ...]` the training people, `parties` how many there are, `key` a counter key. It gives the columns of each party
as positions along the axis that is cut, int64 and increasing, none empty; those of two parties are disjoint, and
together they are all columns. The axis is the option `axis` where a partition has one, else the last.
"""

from __future__ import annotations

from fedopt.registry import Registry

registry = Registry("vertical", __name__)
