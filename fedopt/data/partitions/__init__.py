"""Partitions: which samples belong to which client.

A partition is a function `name(labels, groups, clients, key, *, ...options) -> Parts`: `labels [S]` (or `[S, ...]`
where a sample has more than one), `groups [S]` the natural owners or None, `clients` how many are wanted or None, `key`
a counter key. The samples of a client are increasing, those of two clients disjoint, and together they are all samples
unless the partition says otherwise. Two facts may be declared: `by_groups = True`, a client is a natural owner;
`shared = True`, a sample may be given to many clients.
"""

from __future__ import annotations

from fedopt.registry import Registry

registry = Registry("partitions", __name__)
