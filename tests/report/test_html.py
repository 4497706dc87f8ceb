"""The report of one run, as text."""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedopt.report import html, page
from fedopt.report import record as run
from fedopt.types import FedoptError

EVIL = '<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">'


class Outline(HTMLParser):
    """Elements, attributes and the texts outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_report_says_what_ran_and_what_came_of_it(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    path = html.write(folder)
    assert path == folder / "report.html"
    outline = Outline(path.read_text(encoding="utf-8"))
    record = run.read(folder)
    totals = run.totals(record)
    assert "krum against IPM" in outline.text
    assert (
        "FedAvg with krum trained mlp (4\u202f810 parameters) on digits over 30 clients, 2 of them attackers,"
        in outline.text
    )
    assert "on the stacked executor (24 times as fast as serial) on 1 March 2026, 09:30." in outline.text
    for mark in (run.final(record), run.best(record)):
        assert mark
        assert f"{100 * mark.value:.2f} %" in outline.text
        assert f"round {mark.round}" in outline.text
    assert f"{totals.bytes_up / 1e6:.2f} MB" in outline.text
    assert "of 400 asked" in outline.text
    # the config stands there as TOML
    config = next(t for t in outline.texts if t.startswith("[run]"))
    assert tomllib.loads(config) == record.config
    assert not list(folder.glob(".report*"))


def test_the_page_asks_the_network_for_nothing(fake_run: Callable[..., Path]) -> None:
    outline = Outline(html.write(fake_run()).read_text(encoding="utf-8"))
    for tag, attributes in outline.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
    policy = next(a["content"] for t, a in outline.tags if t == "meta" and a.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_plotly_stands_in_the_page_once(fake_run: Callable[..., Path]) -> None:
    text = html.write(fake_run()).read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1


@pytest.mark.parametrize("where", ["run name", "client", "class", "reason", "config", "status"])
def test_text_from_a_run_is_only_text(fake_run: Callable[..., Path], where: str) -> None:
    folder = fake_run(
        name=EVIL.replace('"', "'") if where in ("run name", "config") else "fine",
        client_names={3: EVIL} if where == "client" else None,
        classes=("N", EVIL) if where == "class" else ("N", "Q"),
        reason=EVIL if where == "reason" else "",
        status=EVIL if where == "status" else "failed",
    )
    if where == "reason":
        line = {"exchange": 40, "round": 41, "rejected": [{"client": 3, "reason": EVIL}]}
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    text = html.write(folder).read_text(encoding="utf-8")
    outline = Outline(text)
    assert "onerror" not in {name for _, attributes in outline.tags for name in attributes}
    assert "img" not in {tag for tag, _ in outline.tags}
    # the data, Plotly, and the two scripts of the report
    assert [a.get("type") for t, a in outline.tags if t == "script"] == ["application/json", None, None, None]
    assert not any("pwned" in script for script in outline.scripts[1:])
    shown = outline.text + json.dumps(embedded(text))
    assert "pwned" in shown


def test_data_cannot_leave_its_script_element() -> None:
    for text in ("</script><script>", "<!--<script>", "&lt;/script>", "\u2028"):
        inner = page.embedded({text: [text]})
        assert "<" not in inner
        assert json.loads(inner) == {text: [text]}


def test_numbers_that_are_none_become_null() -> None:
    assert (
        page.embedded([float("nan"), float("inf"), 1.0, 1 / 3, None, 10**20])
        == "[null,null,1,0.333333,null," + "1" + "0" * 20 + "]"
    )


def test_curves_hold_every_axis(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(every=4)
    data = embedded(html.write(folder).read_text(encoding="utf-8"))
    record = run.read(folder)
    accuracy = data["accuracy"]["traces"][0]
    assert accuracy["y"] == pytest.approx(run.series(record, "accuracy").y, rel=1e-5)
    for axis in ("round", "bytes", "seconds", "updates"):
        assert accuracy["x"][axis] == pytest.approx(run.series(record, "accuracy", axis).x, rel=1e-5)
    assert len(accuracy["y"]) == 10
    assert [t["name"] for t in data["loss"]["traces"]] == ["test loss", "training loss", "loss at the clients"]
    assert len(data["loss"]["traces"][1]["y"]) == 40
    assert [t["name"] for t in data["recall"]["traces"]] == ["N", "Q", "S", "V"]
    assert [t["name"] for t in data["info"]["traces"]] == ["trust", "norm"]


def test_the_client_table_counts_what_the_record_says(fake_run: Callable[..., Path]) -> None:
    folder = fake_run()
    record = run.read(folder)
    data = embedded(html.write(folder).read_text(encoding="utf-8"))
    heads = [column["name"] for column in data["clients"]["columns"]]
    assert heads == ["client", "samples", "classes", "asked", "answered", "rejected", "last loss", "role"]
    for client, row in enumerate(data["clients"]["rows"]):
        answered = rejected = 0
        last = None
        for line in record.lines:
            for which, loss in zip(line["clients"], line["client_loss"], strict=True):
                if which == client:
                    answered, last = answered + 1, loss
            for entry in line["rejected"]:
                rejected += entry["client"] == client
        holder = record.partition["clients"][client]
        assert row[0] == [client, f"client {client}"]
        assert row[1][0] == holder["train"]
        assert row[2][0] == sum(k > 0 for k in holder["labels"])
        assert row[3:6] == [answered + rejected, answered, rejected]
        assert row[6] is None if last is None else row[6][0] == pytest.approx(last, rel=1e-5)
        assert row[7] == ("attacker" if client in (1, 4) else "")
    assert data["clients"]["marked"] == [1, 4]
    assert any(row[5] for row in data["clients"]["rows"])


def test_without_attackers_there_is_no_role(fake_run: Callable[..., Path]) -> None:
    table = embedded(html.write(fake_run(clients=3, rounds=2)).read_text(encoding="utf-8"))["clients"]
    assert table["columns"][-1]["name"] == "last loss"
    assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_rejections_are_gathered_by_client_and_reason(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=0)
    lines = [
        {"exchange": i, "round": i + 1, "rejected": [{"client": 2, "reason": reason}]}
        for i, reason in enumerate(["NaN", "late", "NaN", "NaN"])
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = embedded(html.write(folder).read_text(encoding="utf-8"))
    assert data["rejections"]["rows"] == [[[2, "client 2"], "NaN", 3, 1, 4], [[2, "client 2"], "late", 1, 2, 2]]


def test_participation_is_counted_in_cells(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=250)
    record = run.read(folder)
    drawn = embedded(html.write(folder).read_text(encoding="utf-8"))["participation"]
    assert drawn["span"] == 3
    assert drawn["rounds"] == list(range(1, 251, 3))
    for client in (0, 7, 29):
        taken = [client in line["clients"] for line in record.lines]
        # cells of three rounds, the last of one
        assert drawn["values"][client] == pytest.approx(
            [sum(taken[i : i + 3]) / len(taken[i : i + 3]) for i in range(0, 250, 3)]
        )


def test_requests_without_an_answer_are_told(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=3)
    line = {"exchange": 3, "round": 4, "asked": 10, "answered": 8, "clients": list(range(8)), "rejected": []}
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    assert "2 of 40 requests were left unanswered." in Outline(html.write(folder).read_text(encoding="utf-8")).text


def test_thousands_of_clients_are_drawn_as_a_sample_with_the_attackers(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(clients=3000, rounds=5)
    path = html.write(folder)
    data = embedded(path.read_text(encoding="utf-8"))
    drawn = data["partition"]
    assert 198 <= len(drawn["names"]) <= 200
    assert drawn["sizes"] == sorted(drawn["sizes"])
    assert sum(drawn["attackers"]) == 2
    assert [len(row) for row in drawn["values"]] == [len(drawn["names"])] * 4
    assert sum(data["sizes"]["clients"]) == sum(data["times"]["clients"]) == 3000
    heard: dict[int, int] = {}
    for raw in (folder / "metrics.jsonl").read_text().splitlines():
        for client in json.loads(raw)["clients"]:
            heard[client] = heard.get(client, 0) + 1
    for answers, clients in zip(data["times"]["values"], data["times"]["clients"], strict=True):
        assert clients == (list(heard.values()).count(answers) if answers else 3000 - len(heard))
    assert "participation" not in data
    assert len(data["clients"]["rows"]) == 3000


def test_a_population_is_shown_by_those_listed_and_those_heard_of(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(clients=3000, rounds=5)
    partition = json.loads((folder / "partition.json").read_text())
    partition["clients"] = partition["clients"][::10]
    partition["population"] = {"clients": 3000}
    (folder / "partition.json").write_text(json.dumps(partition))
    outline = Outline(html.write(folder).read_text(encoding="utf-8"))
    data = embedded(html.write(folder).read_text(encoding="utf-8"))
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    heard = {client for line in lines for client in line["clients"]}
    assert "over 3\u202f000 clients, 2 of them attackers" in outline.text
    assert sum(data["sizes"]["clients"]) == 300 and "300 of 3\u202f000 clients, evenly spaced" in outline.text
    assert sum(data["times"]["clients"]) == 3000
    assert "participation" not in data
    rows = data["clients"]["rows"]
    unlisted = sorted(client for client in heard if client % 10)
    assert [row[0][0] for row in rows] == [*range(0, 3000, 10), *unlisted]
    assert all(row[1] is None and row[2] is None and row[4] >= 1 for row in rows[300:])
    assert f"The table holds some, and those that took part: {len(rows)} of 3\u202f000 clients." in outline.text
    assert len(data["partition"]["names"]) == 200


def test_attackers_do_not_crowd_out_the_sample(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(clients=1000, rounds=1)
    partition = json.loads((folder / "partition.json").read_text())
    partition["attackers"] = list(range(400))
    (folder / "partition.json").write_text(json.dumps(partition))
    drawn = embedded(html.write(folder).read_text(encoding="utf-8"))["partition"]
    assert len(drawn["names"]) <= 200
    assert 50 <= sum(drawn["attackers"]) < 150


@pytest.mark.slow
def test_ten_thousand_exchanges_stay_small(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=10_000, clients=2000, asked=20)
    path = html.write(folder)
    assert path.stat().st_size < 12e6
    data = embedded(path.read_text(encoding="utf-8"))
    assert all(len(t["y"]) <= 2000 for chart in ("accuracy", "loss", "info") for t in data[chart]["traces"])


def test_thinning_keeps_ends_and_extremes() -> None:
    draw = random.Random(3)
    values = [draw.random() for _ in range(12_345)]
    values[777], values[9999] = 50.0, -50.0
    kept = page.thin(values)
    assert len(kept) <= 2000
    assert kept == sorted(set(kept))
    assert {0, 12_344, 777, 9999} <= set(kept)
    assert page.thin(values[:2000]) == list(range(2000))
    assert len(page.thin(values[:2001])) <= 2000
    assert page.thin([]) == []


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "stopped"])
def test_a_run_that_is_not_finished_has_a_report(fake_run: Callable[..., Path], status: str) -> None:
    folder = fake_run(status, status=status, reason="because of this", rounds=3, tail='{"exch')
    text = Outline(html.write(folder).read_text(encoding="utf-8")).text
    assert f"{status}: because of this" in text


def test_a_run_without_lines_has_a_report(fake_run: Callable[..., Path]) -> None:
    text = html.write(fake_run(rounds=0)).read_text(encoding="utf-8")
    assert "No exchange has been recorded yet." in text
    assert {"accuracy", "loss", "phases", "traffic", "participation"}.isdisjoint(embedded(text))


def test_a_run_without_clients_labels_or_names_has_a_report(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=2)
    (folder / "partition.json").write_text('{"clients": [{"client": 0, "train": 5}, {"client": 1, "train": 7}]}')
    (folder / "run.json").write_text("{}")
    (folder / "config.toml").write_text("")
    drawn = embedded(html.write(folder).read_text(encoding="utf-8"))["partition"]
    assert drawn["values"] == [[5, 7]]
    assert drawn["names"] == ["client 0", "client 1"]
    (folder / "partition.json").write_text("{}")
    assert "partition" not in embedded(html.write(folder).read_text(encoding="utf-8"))


def test_a_regression_is_judged_by_its_loss(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=5)
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("exchange", "round", "clients", "loss", "seconds", "elapsed")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({k: line[k] for k in kept}) + "\n" for line in lines))
    outline = Outline(html.write(folder).read_text(encoding="utf-8"))
    assert "final test loss" in outline.text
    assert f"{lines[-1]['loss']:.4g}" in outline.text


def test_the_report_is_replaced_in_one_step(fake_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_run()
    written: list[str] = []
    write_text = Path.write_text

    def noted(self: Path, *args: Any, **options: Any) -> int:
        written.append(self.name)
        return write_text(self, *args, **options)

    def full(self: Path, *args: Any, **options: Any) -> int:
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", noted)
    html.write(folder)
    assert len(written) == 1
    assert "report.html" not in written
    before = (folder / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        html.write(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == before
    assert sorted(p.name for p in folder.iterdir() if "report" in p.name) == ["report.html"]


def test_no_run_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FedoptError, match=r"config\.toml and run\.json and partition\.json and metrics\.jsonl missing"):
        html.write(tmp_path)


def test_counters_that_a_strategy_keeps_are_axes() -> None:
    lines = [
        {
            "exchange": i,
            "round": i + 1,
            "program": "gradient",
            "loss": 1.0 / (i + 1),
            "info": {"rounds_f": f, "rounds_g": g},
        }
        for i, (f, g) in enumerate([(1, 0), (1, 1), (1, 2), (2, 2)])
    ]
    record = run.RunRecord({}, {}, {}, lines, Path("r"))
    (trace,) = html.curves(record, ["loss"])["traces"]  # type: ignore[index]
    assert trace["x"]["rounds_f"] == [1, 1, 1, 2] and trace["x"]["rounds_g"] == [0, 1, 2, 2]
    assert "messages" not in trace["x"]
    plain = run.RunRecord({}, {}, {}, [{**line, "info": {}} for line in lines], Path("r"))
    assert set(html.curves(plain, ["loss"])["traces"][0]["x"]) == set(html.AXES)  # type: ignore[index]
