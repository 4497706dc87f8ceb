"""Schedules: closed forms at chosen rounds, and their place in options."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedopt.registry import ConfigError, convert
from fedopt.schedules import SHAPES, Scalar, Schedule, at

CASES: list[tuple[dict[str, Any], dict[int, float]]] = [
    ({"schedule": "constant", "value": 2.0}, {0: 2.0, 99: 2.0}),
    ({"schedule": "linear", "start": 1.0, "end": 0.0, "rounds": 4}, {0: 1.0, 1: 0.75, 4: 0.0, 9: 0.0}),
    ({"schedule": "cosine", "start": 2.0, "end": 1.0, "rounds": 6}, {0: 2.0, 3: 1.5, 2: 1.75, 6: 1.0, 7: 1.0}),
    ({"schedule": "exponential", "start": 8.0, "decay": 0.5, "every": 2}, {0: 8.0, 1: 8.0, 2: 4.0, 5: 2.0}),
    ({"schedule": "steps", "values": [3.0, 2.0, 1.0], "at": [2, 5]}, {0: 3.0, 1: 3.0, 2: 2.0, 4: 2.0, 5: 1.0}),
    (
        {"schedule": "wsd", "peak": 1.0, "warmup": 2, "stable": 2, "decay": 4},
        {0: 0.5, 1: 1.0, 3: 1.0, 4: 0.75, 7: 0.0, 20: 0.0},
    ),
]


@pytest.mark.parametrize(
    ("table", "values"), CASES, ids=lambda case: case.get("schedule", "") if isinstance(case, dict) else ""
)
def test_values(table: dict[str, Any], values: dict[int, float]) -> None:
    schedule = convert(Scalar, table, "optimizer.lr")
    assert isinstance(schedule, Schedule)
    for round, value in values.items():
        assert math.isclose(at(schedule, round), value, abs_tol=1e-12)


def test_every_shape_is_tested() -> None:
    assert {case["schedule"] for case, _ in CASES} == set(SHAPES)


def test_a_number_is_a_schedule_that_never_changes() -> None:
    assert convert(Scalar, 3, "x") == 3.0 and at(3.0, 17) == 3.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "cosin", "start": 1.0}, "no schedule 'cosin'. Did you mean 'cosine'?"),
        ({"start": 1.0}, "no schedule 'None'"),
        ({"schedule": "linear", "start": 1.0, "rounds": 3}, "end: missing"),
        ({"schedule": "linear", "start": 1.0, "end": 0.0, "round": 3}, "unknown option. Did you mean 'rounds'?"),
        ("0.1", "a number or a table"),
        (True, "a number or a table"),
    ],
)
def test_mistakes(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(Scalar, given, "optimizer.lr")
    assert message in str(caught.value) and str(caught.value).startswith("optimizer.lr")
