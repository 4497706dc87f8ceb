"""No two rules agree on a fixture without symmetry, so none can stand in for another unseen."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from fedopt import aggregators
from fedopt.registry import facts
from fedopt.testing import discriminating
from fedopt.testing.aggregators import apply

RULES: list[tuple[str, dict[str, Any]]] = [
    (name, dict(options))
    for name in aggregators.registry.builtin()
    for options in facts(aggregators.registry.get(name)).get("examples", ({},))
]


@functools.cache
def outcomes() -> list[torch.Tensor]:
    return [apply(aggregators.build(name, options), discriminating()) for name, options in RULES]


@pytest.mark.parametrize("number", range(len(RULES)), ids=lambda number: str(RULES[number]))
def test_no_two_rules_agree(number: int) -> None:
    scale = float(discriminating().updates.median(dim=0).values.abs().max())
    for other in range(number):
        a, b = outcomes()[number], outcomes()[other]
        both = f"{RULES[number]} and {RULES[other]} both give {a.tolist()}"
        assert float((a - b).abs().max()) > 1e-3 * scale, both


def test_the_fixture_tells_the_textbook_statistics_apart() -> None:
    """Weighted and plain mean, median and lower median, midrange, and trimmed means by 1, 2 and 3."""
    case = discriminating()
    updates, weights = case.updates, case.offers["weights"]
    rows = updates.sort(dim=0).values
    n = rows.shape[0]
    statistics = {
        "weighted mean": (weights[:, None] * updates).sum(0) / weights.sum(),
        "mean": updates.mean(0),
        "median": updates.quantile(0.5, dim=0),
        "midrange": (rows[0] + rows[-1]) / 2,
        **{f"trimmed by {f}": rows[f : n - f].mean(0) for f in (1, 2, 3)},
    }
    for (a, x), (b, y) in itertools.combinations(statistics.items(), 2):
        assert bool(((x - y).abs() > 1e-3).all()), f"{a} and {b} agree in a coordinate"
    assert torch.equal(discriminating().updates, updates)
