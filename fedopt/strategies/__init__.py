"""Federated methods: pure functions over exchanges."""

from __future__ import annotations

from fedopt.registry import Registry

PARTS = ("participation", "aggregator", "optimizer", "server", "batches")
registry = Registry("strategies", __name__, offers=PARTS)
