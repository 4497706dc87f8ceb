"""No two rules agree on a fixture without symmetry, so none can stand in for another unseen."""

from __future__ import annotations

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


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(RULES, 2)), ids=str)
def test_no_two_rules_agree(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    case = discriminating()
    a, b = (apply(aggregators.build(name, options), case) for name, options in (one, other))
    scale = case.updates.median(dim=0).values.abs().max()
    assert float((a - b).abs().max()) > 1e-3 * float(scale), f"{one} and {other} both give {a.tolist()}"


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
