"""What cells cost, and what dominates them, in the report of a sweep."""

from __future__ import annotations

import math
from typing import Any

from fedopt.report import sweep, sweep_cost, sweep_page
from tests.report.test_sweep_page import embedded, made


def costing(numbers: dict[str, dict[str, Any]], updates: dict[str, int], **changes: Any) -> sweep.Results:
    document = made(numbers, **changes)
    for cell in document["cells"]:
        cell |= {"updates": updates[cell["settings"]["rule"]], "bytes_up": 100 * updates[cell["settings"]["rule"]]}
    return sweep.Results(document)


NUMBERS: dict[str, dict[str, Any]] = {
    "m = 5": {"plain": (0.80, 0.82), "topk": (0.60, 0.62)},
    "m = 20": {"plain": (0.90, 0.92), "topk": (0.60, 0.61)},
    "isp": {"plain": (0.895, 0.905), "topk": (0.50, 0.52)},
}
UPDATES = {"m = 5": 750, "m = 20": 3000, "isp": 1500}


def rows(found: sweep.Results) -> dict[tuple[str, str], str]:
    return {(row[0], row[1]): row[-1] for row in sweep_cost.table(found)["rows"]}


def test_who_dominates_whom() -> None:
    found = rows(costing(NUMBERS, UPDATES))
    assert found["plain", "isp"] == "" and found["plain", "m = 20"] == ""
    assert found["topk", "isp"] == "m = 5" and found["topk", "m = 20"] == "", "level is not better"
    assert list(found)[:3] == [("plain", "m = 5"), ("plain", "isp"), ("plain", "m = 20")], "the cheapest first"


def test_a_gain_within_a_standard_error_does_not_dominate() -> None:
    """s = 0.1 √2 for both, two seeds: an error of 0.1 √2."""
    for gain, wanted in ((0.140, ""), (0.143, "a")):
        numbers = {"a": {"plain": (0.5 + gain, 0.7 + gain)}, "b": {"plain": (0.5, 0.7)}}
        assert rows(costing(numbers, {"a": 10, "b": 20}))["plain", "b"] == wanted
    lower = {"a": {"plain": (0.1, 0.1)}, "b": {"plain": (0.5, 0.5)}}
    found = costing(lower, {"a": 10, "b": 20}, metric="loss")
    assert rows(found)["plain", "b"] == "a", "less is better for a loss"


def test_points_have_errors_of_the_mean() -> None:
    found = costing(NUMBERS, UPDATES)
    trace = sweep_cost.picture(found, found.panels[0])["traces"][0]
    assert trace["name"] == "plain" and trace["updates"] == [750, 3000, 1500] and trace["bytes"][0] == 75_000
    assert all(math.isclose(e, w) for e, w in zip(trace["error"], (0.01, 0.01, 0.005), strict=True))


def test_the_page_has_it_where_costs_differ() -> None:
    found = costing(NUMBERS, UPDATES)
    text = sweep_page.page(found)
    assert "Against cost" in text and embedded(text)["costs"][0]["traces"][1]["name"] == "topk"
    level = costing(NUMBERS, dict.fromkeys(UPDATES, 500))
    assert "Against cost" not in sweep_page.page(level)
    assert "Against cost" not in sweep_page.page(sweep.Results(made(NUMBERS))), "results of before know no cost"


def test_cells_that_are_not_done_are_left_out() -> None:
    numbers: dict[str, dict[str, Any]] = {"a": {"plain": "waiting"}, "b": {"plain": (0.5, 0.6)}}
    found = costing(numbers, {"a": 10, "b": 20})
    assert rows(found) == {("plain", "b"): ""}
