"""Partitions: which samples belong to which client.

A partition is a function `name(labels, groups, clients, key, *, ...options) -> list of index tensors [k]`, one for each
client: `labels [S]` (or `[S, ...]` where a sample has more than one), `groups [S]` the natural owners or None,
`clients` how many are wanted or None, `key` a counter key. Index tensors are increasing, disjoint, and together hold
every sample unless the partition says otherwise. The fact `by_groups = true` says that a client is a natural owner.
"""

from __future__ import annotations

from fedopt.registry import Registry

registry = Registry("partitions", __name__)
