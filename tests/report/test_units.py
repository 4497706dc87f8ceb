"""Numbers as people read them."""

from __future__ import annotations

import pytest

from fedopt.report import units


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (950, "950 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (19240, "19.2 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (3.4e9, "3.40 GB"),
        (2.5e18, "2500 PB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert units.nbytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.354, "0.35 s"),
        (12.44, "12.4 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (8070, "2 h 14 min"),
        (86399.9, "1 d 00 h"),
        (3 * 86400 + 4 * 3600 + 60, "3 d 04 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_measures() -> None:
    assert units.measure("accuracy", 0.92791) == "92.79 %"
    assert units.measure("client_eval.score", 0.5) == "50.00 %"
    assert units.measure("recall.N", 1.0) == "100.00 %"
    assert units.measure("loss", 0.123456) == "0.1235"
    assert units.measure("accuracy", 0.9279, 0.0019) == "92.79 ± 0.19 %"
    assert units.measure("loss", 0.5, 0.0123) == "0.5 ± 0.012"
    assert units.measure("loss", None) == "–"
    assert units.measure("backdoor.badnets", 0.125) == "12.50 %"
    assert units.percent(0.125) == "12.5 %"
    assert units.percent(0.00012) == "0.012 %"


def test_counts_and_labels() -> None:
    assert units.count(1234567) == "1\u202f234\u202f567"
    assert units.label("client_eval.score") == "score at the clients"
    assert units.label("my_number") == "my number"
    assert units.label("backdoor.model_replacement") == "backdoor model_replacement"
