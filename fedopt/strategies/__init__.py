"""Federated methods: pure functions over exchanges.

What a strategy says about itself, with `fedopt.registry.declare`:

    reference   where it is from
    private     True where the server learns nothing from clients but what its rule makes of the rows `delta`: neither
                other vectors, nor weights, metrics or who was rejected; [privacy] asks
    pooled, examples, exceptions    see `fedopt.data.pool` and `fedopt.testing`
"""

from __future__ import annotations

from fedopt.registry import Registry

PARTS = ("participation", "aggregator", "optimizer", "server", "batches")
registry = Registry("strategies", __name__, offers=PARTS)
