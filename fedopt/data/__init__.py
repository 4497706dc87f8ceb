"""Data sources, and how their samples are spread over clients.

A source is a function `name(*, ...options) -> Dataset`; a partition is a function
`name(labels, groups, clients, key, *, ...options) -> Parts`. `federate` joins the two into a
`Federation`, the form that the engine reads; `draw` says which samples of its own a client uses at each step.
`federate_vertically` gives parties columns in place of samples, by a vertical partition, and `align` finds the people
whom all parties have.
Files are found below the folder that the environment variable FEDOPT_DATA names; nothing is downloaded.
"""

from __future__ import annotations

from fedopt.data._alignment import Party, align, read_party
from fedopt.data._batches import draw
from fedopt.data._federate import counts, federate, pool, relabel, resample
from fedopt.data._paths import data_path
from fedopt.data._values import Dataset, Federation, Parts, Shards, Split
from fedopt.data._vertical import federate_vertically
from fedopt.registry import Registry

registry = Registry("data", __name__)

__all__ = [
    "Dataset",
    "Federation",
    "Parts",
    "Party",
    "Shards",
    "Split",
    "align",
    "counts",
    "data_path",
    "draw",
    "federate",
    "federate_vertically",
    "pool",
    "read_party",
    "registry",
    "relabel",
    "resample",
]
