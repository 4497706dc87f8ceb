"""Several runs side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedopt.report import compare
from fedopt.report import record as run
from fedopt.types import FedoptError


def embedded(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def printed(groups: list[compare.Group], width: int) -> str:
    console = Console(width=width, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(compare.table(groups))
    text = console.export_text()
    console.file.close()
    return text


def test_runs_that_differ_in_the_seed_alone_are_one_group(fake_run: Callable[..., Path]) -> None:
    paths = [
        fake_run("a", seed=1, name="x"),
        fake_run("b", seed=1, name="y", rule="mean"),
        fake_run("c", seed=2, name="x"),
        fake_run("d", seed=2, name="y", rule="mean"),
    ]
    groups = compare.gather(paths)
    assert [(group.name, [r.path.name for r in group.runs]) for group in groups] == [
        ("x", ["a", "c"]),
        ("y", ["b", "d"]),
    ]


def test_the_same_seed_again_is_no_repeat(fake_run: Callable[..., Path]) -> None:
    groups = compare.gather([fake_run("before"), fake_run("after")])
    assert [group.name for group in groups] == ["krum against IPM · before", "krum against IPM · after"]


def test_cells_of_a_sweep_are_told_apart_by_their_folders(fake_run: Callable[..., Path]) -> None:
    cells = ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    paths = [fake_run(f"{cell}/seed-{seed}", seed=seed, lr=float(cell[-3:])) for cell in cells for seed in (1, 2)]
    groups = compare.gather(paths)
    assert [(group.name, len(group.runs)) for group in groups] == [(f"krum against IPM · {c}", 2) for c in cells]


def test_a_folder_given_twice_counts_once(fake_run: Callable[..., Path]) -> None:
    path = fake_run("a")
    assert [len(group.runs) for group in compare.gather([path, path, path.parent])] == [1]


def test_a_folder_of_seeds_is_a_group(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    for seed in (1, 2, 10):
        fake_run(f"krum/seed-{seed}", seed=seed, name=f"run {seed}")
    fake_run("mean", rule="mean")
    groups = compare.gather([tmp_path / "krum", tmp_path / "mean"])
    assert [group.name for group in groups] == ["krum", "krum against IPM"]
    assert [r.path.name for r in groups[0].runs] == ["seed-1", "seed-2", "seed-10"]
    # the folder above holds both
    assert [len(group.runs) for group in compare.gather([tmp_path])] == [3, 1]


def test_a_folder_of_seeds_has_to_hold_repeats(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    fake_run("krum/seed-1", seed=1)
    fake_run("krum/seed-2", seed=2, lr=0.2)
    with pytest.raises(FedoptError, match=r"seed-2 stand in one folder.*differ in optimizer\.lr; make them equal"):
        compare.gather([tmp_path / "krum"])


def test_nothing_to_compare_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FedoptError, match="give at least one run folder"):
        compare.gather([])
    with pytest.raises(FedoptError, match=r"no run\.json in it"):
        compare.gather([tmp_path])
    with pytest.raises(FedoptError, match="there is no such folder"):
        compare.gather([tmp_path / "nowhere"])


def test_only_differences_are_listed(fake_run: Callable[..., Path]) -> None:
    groups = compare.gather([fake_run("a", seed=1), fake_run("b", seed=2, rule="median", lr=0.05, name="other")])
    assert compare.differences(groups) == {"aggregator": ["krum", "median"], "optimizer.lr": ["0.1", "0.05"]}


def test_absent_and_different_kinds_of_values_are_differences() -> None:
    def group(config: dict[str, Any]) -> compare.Group:
        return compare.Group("g", [run.RunRecord(config, {}, {}, [], Path("p"))])

    groups = [
        group({"a": {"b": 1, "flag": True}, "attack": [{"name": "ipm", "count": 2}]}),
        group({"a": {"b": 1.5, "flag": 1}, "attack": []}),
    ]
    assert compare.differences(groups) == {
        "a.b": ["1", "1.5"],
        "a.flag": ["true", "1"],
        "attack": ["–", "[]"],
        "attack[0].count": ["2", "–"],
        "attack[0]": ["ipm", "–"],
    }


def test_the_band_is_the_standard_deviation_over_seeds(fake_run: Callable[..., Path]) -> None:
    paths = [fake_run(f"s{seed}", seed=seed, every=3) for seed in (1, 2, 3)]
    # one run was stopped: its rounds count where all have them
    short = (paths[2] / "metrics.jsonl").read_text().splitlines(keepends=True)[:20]
    (paths[2] / "metrics.jsonl").write_text("".join(short))
    (group,) = compare.gather(paths)
    trace = compare.curve(group, "accuracy", 0)
    assert trace
    records = [run.read(path) for path in paths]
    for i, r in enumerate(range(3, 21, 3)):
        values = [next(line["accuracy"] for line in record.lines if line["round"] == r) for record in records]
        mean = sum(values) / 3
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
        assert trace["x"]["round"][i] == r
        assert trace["y"][i] == pytest.approx(mean)
        assert trace["low"][i] == pytest.approx(mean - deviation)
        assert trace["high"][i] == pytest.approx(mean + deviation)
        sent = [
            sum(line["bytes_up"] + line["bytes_down"] for line in record.lines if line["round"] <= r)
            for record in records
        ]
        assert trace["x"]["bytes"][i] == pytest.approx(sum(sent) / 3)
    assert len(trace["y"]) == 6
    assert trace["name"] == "krum against IPM (3 seeds)"


def test_a_single_run_has_no_band(fake_run: Callable[..., Path]) -> None:
    (group,) = compare.gather([fake_run()])
    trace = compare.curve(group, "accuracy", 0)
    assert trace
    assert "low" not in trace
    assert trace["y"] == run.series(group.runs[0], "accuracy").y
    assert compare.curve(group, "absent", 0) is None


def test_the_page_holds_all_runs(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    evil = "<script>window.pwned = 1</script>"
    paths = [fake_run("a", seed=1), fake_run("b", seed=2), fake_run("c", rule="mean", name=evil, level=0.5)]
    path, _ = compare.compare(paths, tmp_path / "new" / "compare.html")
    assert path == tmp_path / "new" / "compare.html"
    text = path.read_text(encoding="utf-8")
    assert evil not in text
    data = embedded(text)
    assert list(data["charts"])[:2] == ["accuracy", "client_eval.score"]
    assert [t["name"] for t in data["charts"]["accuracy"]["traces"]] == ["krum against IPM (2 seeds)", evil]
    assert [c["name"] for c in data["table"]["columns"]] == [
        "run",
        "strategy",
        "rounds",
        "final accuracy",
        "best accuracy",
        "bytes",
        "time",
        "aggregator",
    ]
    records = [run.read(p) for p in paths]
    finals = [record.lines[-1]["accuracy"] for record in records]
    mean = (finals[0] + finals[1]) / 2
    deviation = abs(finals[0] - finals[1]) / math.sqrt(2)
    assert data["table"]["rows"][0][3][0] == pytest.approx(mean, rel=1e-5)
    assert data["table"]["rows"][0][3][1] == f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    assert data["table"]["rows"][1][3][1] == f"{100 * finals[2]:.2f} %"
    assert data["table"]["rows"][1][-1] == "mean"


def test_a_measure_that_all_have_comes_first(fake_run: Callable[..., Path]) -> None:
    folder = fake_run("plain", rounds=2, rule="mean")
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["accuracy"], line["client_eval"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = compare.gather([fake_run("full"), folder])
    assert compare.judged_by(groups) == "loss"
    assert "accuracy" in compare.metrics(groups)


def test_runs_without_a_measurement_are_compared_all_the_same(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    path, _ = compare.compare([fake_run("a", rounds=0)], tmp_path / "c.html")
    text = path.read_text(encoding="utf-8")
    assert "None of the runs has measured anything yet." in text
    assert embedded(text)["table"]["rows"][0][3] == [None, "–"]


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_table_fits(fake_run: Callable[..., Path], width: int) -> None:
    paths = [
        fake_run("a", seed=1),
        fake_run("b", seed=2),
        fake_run("c", rule="mean", name="[red]mean[/red]", status="stopped"),
    ]
    text = printed(compare.gather(paths), width)
    assert max(map(len, text.splitlines())) <= width
    assert "±" in text
    assert "15.3 MB" in text
    if width == 140:
        assert "krum against IPM (2 seeds)" in text
        assert "[red]mean[/red] [stopped]" in text
        assert "aggregator = mean" in text


def test_final_backdoor_rates_are_compared_where_there_are_any(
    fake_run: Callable[..., Path], trusting_run: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [
        trusting_run("a", seed=1, trust={"backdoors": ("badnets", "dba")}),
        trusting_run("b", seed=2, trust={"backdoors": ("badnets", "dba")}),
        fake_run("c", rule="mean", name="plain"),
    ]
    groups = compare.gather(paths)
    assert compare.judged_by(groups) == "accuracy"
    assert compare.metrics(groups)[-2:] == ["backdoor.badnets", "backdoor.dba"]
    assert [row.backdoor for row in compare.rows(groups)] == [(pytest.approx(0.9), pytest.approx(0.0)), None]
    text = printed(groups, 110)
    assert "backdoor" in text
    assert "90.00 ± 0.00 %" in text
    assert max(map(len, printed(groups, 80).splitlines())) <= 80
    data = embedded(compare.compare(paths, tmp_path / "compare.html")[0].read_text(encoding="utf-8"))
    column = [c["name"] for c in data["table"]["columns"]].index("final backdoor")
    assert [row[column] for row in data["table"]["rows"]] == [[0.9, "90.00 ± 0.00 %"], [None, "–"]]
    assert all(len(row) == len(data["table"]["columns"]) for row in data["table"]["rows"])
    assert data["charts"]["backdoor.dba"]["label"] == "backdoor dba"
    assert data["charts"]["backdoor.dba"]["share"] is True
    # where a backdoor's rate is all that two groups have in common, it judges neither
    bare = [{"exchange": 0, "round": 1, "clients": [], "backdoor": {"badnets": 0.5}}]
    only = [compare.Group(n, [run.RunRecord({"n": n}, {}, {}, bare, Path(n))]) for n in ("x", "y")]
    assert compare.judged_by(only) is None
    assert compare.metrics(only) == ["backdoor.badnets"]
