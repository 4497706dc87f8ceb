"""Trust in clients, attackers, backdoors and rounds that kept the model, in the report of one run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedopt.report import clients as people
from fedopt.report import html, trust, units
from fedopt.report import record as run

REASON = "none of 10 updates lowers the trial loss"


def report(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page, and the data in it."""
    text = html.write(folder).read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return text[: text.index('<script type="application/json"')], json.loads(found[1])


def made(lines: list[dict[str, Any]], partition: dict[str, Any] | None = None) -> run.RunRecord:
    numbered = [{"exchange": i, "round": i + 1, **line} for i, line in enumerate(lines)]
    return run.RunRecord({}, {}, partition or {}, numbered, Path("r"))


def told(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"clients": [int(c) for c in weights], "info": {"trust": weights, **more}}


def test_weights_are_read_by_client() -> None:
    assert run.weights(told({"3": 0.25, "11": 0.5, "2": 0})) == {3: 0.25, 11: 0.5, 2: 0.0}
    # scores that are no shares become shares
    assert run.weights(told({"3": 6.0, "11": 2.0})) == {3: 0.75, 11: 0.25}
    assert run.weights(told({"0": -1.0, "1": 3.0})) == {0: -0.25, 1: 0.75}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"info": None},
        {"info": [1]},
        {"info": {}},
        {"info": {"trust": 0.5}},
        {"info": {"trust": None}},
        {"info": {"trust": [0.5, 0.5]}},
        {"info": {"trust": "all"}},
        {"info": {"trust": {"a": 0.5, "-1": 0.5, "1.5": 0.5, "": 1, "1": None, "2": "much", "3": True, "4": [1]}}},
        {"info": {"trust": {"1": float("nan"), "2": float("inf"), "3": 10**400, "9" * 30: 1.0}}},
    ],
)
def test_what_is_no_weight_is_left_out(line: dict[str, Any]) -> None:
    assert run.weights(line) == {}


def test_a_good_weight_beside_bad_ones_counts() -> None:
    assert run.weights({"info": {"trust": {"1": 0.5, "x": 0.5, "2": None}}}) == {1: 0.5}


def test_the_reason_for_keeping_the_model_is_read() -> None:
    assert run.kept_reason({"info": {"kept_model": REASON}}) == REASON
    assert run.kept_reason({"info": {"kept_model": " two\n lines "}}) == "two lines"
    assert run.kept_reason({"info": {"kept_model": True}}) == ""
    for odd in (None, "", "  ", False, 1, 0.5, ["x"], {"a": 1}):
        assert run.kept_reason({"info": {"kept_model": odd}}) is None
    assert run.kept_reason({"info": "kept_model"}) is None
    record = made([{"info": {"kept_model": "a"}}, {}, {"info": {"kept_model": "b"}, "round": 1}])
    assert run.kept(record) == {1: "b"}


def test_numbers_of_the_rule_are_charted_without_its_words(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(trust={"kept": {5: REASON}, "epsilon": True})
    assert run.fields(run.read(folder), "info") == ["norm", "epsilon"]
    text, data = report(folder)
    assert [t["name"] for t in data["info"]["traces"]] == ["norm", units.label("epsilon")]
    assert "privacy spent" in text
    assert "ε = 1.897" in text


def test_every_client_has_a_row_with_the_attackers_on_top(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(client_names={4: "the fourth"}, trust={"kept": {5: REASON}})
    text, data = report(folder)
    record, drawn = run.read(folder), data["trust"]
    heard = {c for line in record.lines for c in line["clients"]}
    assert drawn["names"][:2] == ["client 1", "the fourth"]
    assert drawn["names"][2:] == [f"client {c}" for c in sorted(heard - {1, 4})]
    assert drawn["roles"][:3] == ["attacker: badnets", "attacker: ipm, rounds 10 to 30, 50 % of rounds", ""]
    assert drawn["rounds"] == list(range(1, 41))
    for row, client in ((0, 1), (1, 4), (2, min(heard - {1, 4}))):
        for line in record.lines:
            value = drawn["values"][row][line["round"] - 1]
            given = line["info"]["trust"].get(str(client))
            assert value == (None if given is None else pytest.approx(given, rel=1e-5))
    assert drawn["kept"] == {"x": [5], "text": [f"model kept in round 5: {REASON}"]}
    assert "Trust of each client over time" in text
    assert 'id="trust" role="figure" aria-label="Trust of each client over time"' in text
    assert "trusts" not in data


def test_the_weight_on_attackers_stands_against_their_share(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run()
    record, (share, weight) = run.read(folder), report(folder)[1]["weight"]["lines"]
    assert share["x"] == weight["x"] == list(range(1, 41))
    for line in record.lines:
        given, i = line["info"]["trust"], line["round"] - 1
        assert weight["y"][i] == pytest.approx(given.get("1", 0) + given.get("4", 0), abs=1e-6)
        assert share["y"][i] == pytest.approx(len({1, 4} & set(line["clients"])) / len(line["clients"]), rel=1e-5)


def test_of_many_clients_the_spread_is_drawn(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(clients=200, rounds=12, asked=40, trust={"attackers": tuple(range(50)), "kept": {3: REASON}})
    text, data = report(folder)
    assert "trust" not in data
    honest, bad = data["trusts"]["lines"]
    assert [honest["name"], bad["name"]] == ["honest clients", "attackers"]
    for drawn, attacking in ((honest, False), (bad, True)):
        for i, line in enumerate(run.read(folder).lines):
            found = sorted(w for c, w in run.weights(line).items() if (c < 50) == attacking)
            assert drawn["y"][i] == pytest.approx(sum(found) / len(found), abs=1e-6)
            assert found[0] - 1e-6 <= drawn["low"][i] <= drawn["high"][i] <= found[-1] + 1e-6
    assert data["trusts"]["kept"]["x"] == data["weight"]["kept"]["x"] == [3]
    assert "Trust over time" in text


def test_quantiles_lie_between_values() -> None:
    assert trust.quantile([3.0], 0.9) == 3.0
    assert trust.quantile([0.0, 1.0], 0.1) == pytest.approx(0.1)
    assert trust.quantile(list(map(float, range(11))), 0.9) == pytest.approx(9.0)


def test_without_attackers_trust_is_drawn_all_the_same(trusting_run: Callable[..., Path]) -> None:
    data = report(trusting_run(trust={"attackers": (), "attacks": []}))[1]
    assert set(data["trust"]["roles"]) == {""}
    assert "weight" not in data
    data = report(trusting_run("many", clients=120, asked=60, rounds=3, trust={"attackers": (), "attacks": []}))[1]
    assert [line["name"] for line in data["trusts"]["lines"]] == ["clients"]


def test_without_trust_there_is_no_picture_of_it(fake_run: Callable[..., Path]) -> None:
    text, data = report(fake_run())
    assert {"trust", "trusts", "weight", "backdoor"}.isdisjoint(data)
    assert "<h2>Trust</h2>" not in text
    assert "model was kept" not in text
    assert "mean trust" not in [column["name"] for column in data["clients"]["columns"]]


def test_many_rounds_are_drawn_in_cells(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(rounds=250, trust={"kept": {7: "first", 8: "second", 250: "last"}})
    text, data = report(folder)
    record, drawn = run.read(folder), data["trust"]
    assert drawn["span"] == 3
    assert drawn["rounds"] == list(range(1, 251, 3))
    assert drawn["kept"] == {
        "x": [7, 250],
        "text": ["model kept in 2 rounds, last in round 8: second", "model kept in round 250: last"],
    }
    given = [line["info"]["trust"]["1"] for line in record.lines[:3] if "1" in line["info"]["trust"]]
    assert drawn["values"][0][0] == (pytest.approx(sum(given) / len(given), rel=1e-5) if given else None)
    assert "as a mean over 3 rounds" in text
    assert "In 3 of 250 rounds the model was kept, the last time in round 250: last." in text


def test_rounds_that_kept_the_model_are_told(trusting_run: Callable[..., Path], fake_run: Callable[..., Path]) -> None:
    text = report(trusting_run(trust={"kept": {5: "nobody <b>answered</b>."}}))[0]
    assert "In 1 of 40 rounds the model was kept, in round 5: nobody &lt;b&gt;answered&lt;/b&gt;." in text
    # also of a rule that tells no trust
    folder = fake_run("plain", rounds=3)
    with (folder / "metrics.jsonl").open("a") as stream:
        for r in (4, 5):
            stream.write(json.dumps({"exchange": r - 1, "round": r, "info": {"kept_model": "too few"}}) + "\n")
    assert "In 2 of 5 rounds the model was kept, the last time in round 5: too few." in report(folder)[0]


def test_the_rates_of_backdoors_are_drawn_beside_accuracy(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run(every=4, trust={"backdoors": ("badnets", "dba")})
    text, data = report(folder)
    record = run.read(folder)
    assert [t["name"] for t in data["backdoor"]["traces"]] == ["badnets", "dba"]
    assert data["backdoor"]["share"] is True
    for trace in data["backdoor"]["traces"]:
        measured = run.series(record, f"backdoor.{trace['name']}", "bytes")
        assert trace["y"] == pytest.approx(measured.y, rel=1e-5)
        assert trace["x"]["bytes"] == pytest.approx(measured.x, rel=1e-5)
    assert text.index('id="accuracy"') < text.index('id="backdoor"') < text.index('id="loss"')
    assert "final" in text and "backdoor badnets" in text and "90.00 %" in text


def test_roles_name_the_attacks() -> None:
    partition = {
        "attackers": [5, 1],
        "attacks": [
            {"name": "badnets", "clients": [1, 2], "first_round": 0, "last_round": None, "rounds_share": 1.0},
            {"name": "my.room:boost", "clients": [1], "first_round": 4, "clients_share": 0.25},
            {"name": "ipm", "clients": [7, "8", True, None], "first_round": "soon", "last_round": 9},
            {"clients": [9]},
            {"name": "none", "clients": 3},
            "odd",
        ],
    }
    record = made([], partition)
    assert people.attacking(record) == {1, 2, 5, 7}
    assert people.roles(record) == {
        1: "attacker: badnets; boost, from round 5, 25 % of attackers in a round",
        2: "attacker: badnets",
        5: "attacker",
        7: "attacker: ipm, rounds 1 to 10",
    }
    for odd in ({"attackers": 3}, {"attackers": [[1], {}, "2"]}, {"attackers": None, "attacks": {"name": "x"}}):
        assert people.attacking(made([], odd)) == set()


def test_the_client_table_holds_trust_and_attack(trusting_run: Callable[..., Path]) -> None:
    folder = trusting_run()
    text, data = report(folder)
    heads = [column["name"] for column in data["clients"]["columns"]]
    assert heads[-2:] == ["mean trust", "role"]
    assert all(len(row) == len(heads) for row in data["clients"]["rows"])
    given = [line["info"]["trust"]["4"] for line in run.read(folder).lines if "4" in line["info"]["trust"]]
    row = data["clients"]["rows"][4]
    assert row[-2][0] == pytest.approx(sum(given) / len(given), rel=1e-5)
    assert row[-1] == "attacker: ipm, rounds 10 to 30, 50 % of rounds"
    assert data["clients"]["marked"] == [1, 4]
    assert "2 of them attackers (badnets, ipm)," in text


HOSTILE: list[dict[str, Any]] = [
    {"clients": [0, 1, 2], "info": {"trust": {"0": 0.5, "2": float("nan"), "77": 0.25}}},
    {"clients": [], "info": {"trust": {"1": 1.0}}},
    {"clients": None, "info": {"trust": {"0": -1e308, "1": 1e308, "5": 1e308}}},
    {"clients": [0], "info": {"trust": {"zero": 1.0, "0": "high"}, "kept_model": [3]}},
    {"clients": [0], "info": {"trust": None, "kept_model": "<img src=x onerror='window.pwned = 3'>" * 30}},
    {"clients": [0], "info": "nothing", "backdoor": 0.5},
    {"clients": [0], "backdoor": {"badnets": None, "": 0.5, "a.b": 0.25, "text": "much", "yes": True}},
    {"clients": [0], "backdoor": {"badnets": 2.5, "nan": float("nan")}, "info": {"epsilon": float("inf")}},
    {"round": 0, "clients": [0], "info": {"trust": {"0": 1}}},
    {"round": -3, "clients": [0], "info": {"trust": {"0": 0}}},
    {"round": 7, "clients": [0], "info": {"trust": {}, "epsilon": "large", "deep": {"a": {"b": 1}}, "list": [1, 2]}},
]


def test_hostile_lines_have_a_report(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=0)
    lines = [{"exchange": i, "round": i + 1, **line} for i, line in enumerate(HOSTILE)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    partition = json.loads((folder / "partition.json").read_text())
    partition["attackers"] = [1, 77, "x", None]
    partition["attacks"] = [{"name": "<b>ipm</b>", "clients": [77], "first_round": -4.5, "rounds_share": "all"}, 3]
    (folder / "partition.json").write_text(json.dumps(partition))
    text, data = report(folder)
    assert data["trust"]["names"] == ["client 1", "client 77", "client 0", "client 5"]
    assert [len(row) for row in data["trust"]["values"]] == [len(data["trust"]["rounds"])] * 4
    assert data["trust"]["kept"]["x"] == [5]
    assert [t["name"] for t in data["backdoor"]["traces"]] == ["a.b", "badnets"]
    assert "info" not in data
    assert "<b>ipm" not in text
    assert "onerror='" not in text


@pytest.mark.parametrize("partition", ["{}", '{"clients": 3, "attackers": "all", "attacks": null}'])
def test_trust_without_a_partition_is_drawn(trusting_run: Callable[..., Path], partition: str) -> None:
    folder = trusting_run()
    (folder / "partition.json").write_text(partition)
    drawn = report(folder)[1]["trust"]
    assert drawn["names"][0] == "client 0"
    assert set(drawn["roles"]) == {""}


def test_a_few_large_weights_do_not_dim_the_others() -> None:
    lines = [told({str(c): 0.1 for c in range(10)}) for _ in range(100)]
    lines[50] = told({str(c): float(c == 3) for c in range(10)})
    drawn = trust.pictures(made(lines))["trust"]
    assert drawn["most"] == pytest.approx(0.1)
    assert drawn["above"]
    nobody = trust.pictures(made([told({"0": 0.0, "1": 0.0})]))["trust"]
    assert nobody["most"] == 1.0
    assert not nobody["above"]
