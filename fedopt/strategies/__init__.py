"""Federated methods: pure functions over exchanges.

What a strategy says about itself, with `fedopt.registry.declare`:

    reference   where it is from
    private     True where the server learns nothing from clients but what its rule makes of the rows `delta`: neither
                other vectors, nor weights, metrics or who was rejected; [privacy] asks
    vertical    True where clients are parties with columns of the same people, and the server their label owner
    vectors     what [compression] compresses where its own `vectors` say nothing; a strategy whose vectors are not of
                the model's length has a method `lengths(problem) -> {name: length}`
    pooled, examples, exceptions    see `fedopt.data.pool` and `fedopt.testing`
"""

from __future__ import annotations

from fedopt.registry import Registry

PARTS = ("participation", "aggregator", "optimizer", "server", "batches", "codec", "broadcast")
"""Parts that come from sections of their own; `codec` and `broadcast` are those of [compression], for strategies whose
steps depend on them, or that compress what they send down themselves."""

registry = Registry("strategies", __name__, offers=PARTS)
