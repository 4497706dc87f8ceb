"""From the cells of a sweep to figures, table and picture; and the page in docs, of the figures that are stored."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.pages import filled
from bench.participation import __main__ as command
from bench.participation import figures, pace, picture, table
from bench.participation.studies import STUDIES, TIMED, WAITING, Study, fixed, label
from fedopt.report import sweep as reports
from fedopt.sweep import Sweep, read

STUDY = Study("small", "digits", "m_4", ("g_mean",))
CONFIG = """
[run]
rounds = 3
[data]
clients = 5
[optimizer]
name = "sgd"
lr = 0.1
[sweep]
seeds = [1, 2]
at = 2
rows = "participation"
columns = "compression"
[sweep.axes.participation]
m_2 = { participation = { count = 2 } }
m_4 = { participation = { count = 4 } }
isp_uniform = { participation = { count = { name = "isp", start = 4 } } }
[sweep.axes.compression]
none = { compression = "none" }
topk_5 = { compression = { name = "topk", share = 0.05 } }
"""
VALUES = {
    ("m_2", "none"): (6, (0.70, 0.72)),
    ("m_4", "none"): (12, (0.90, 0.92)),
    ("isp_uniform", "none"): (9, (0.90, 0.90)),
    ("m_2", "topk_5"): (6, (0.50, 0.50)),
    ("m_4", "topk_5"): (12, (0.40, 0.40)),
}
"""Updates and accuracy by seed; ISP with Top-K has not been run."""


@pytest.fixture
def plan(tmp_path: Path) -> Sweep:
    (tmp_path / "small.toml").write_text(CONFIG)
    return read(tmp_path / "small.toml", out=tmp_path / "out")


def run_folder(folder: Path, lines: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    for name in ("run.json", "partition.json"):
        (folder / name).write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def swept(plan: Sweep) -> reports.Results:
    """A sweep.json, with run folders that know G-means: those of seed 1 are 0.5 at the end, those of seed 2 0.7."""
    cells = []
    for cell in plan.cells:
        settings = (cell.settings["participation"], cell.settings["compression"])
        updates, values = VALUES.get(settings, (0, ()))
        state = "finished" if values else "waiting"
        if values:
            end = 0.3 + 0.2 * cell.seed
            run_folder(
                plan.out / "cells" / cell.key,
                [{"exchange": i, "round": i + 1, "g_mean": v} for i, v in enumerate((0.1, end - 0.1, end + 0.1))],
            )
        cells.append(
            {
                "settings": cell.settings,
                "seed": cell.seed,
                "key": cell.key,
                "clean": True,
                "state": state,
                "message": "",
                "value": values[cell.seed - 1] if values else None,
                "updates": updates,
                "bytes_up": updates * 250_000,
                "folder": f"cells/{cell.key}",
            }
        )
    document = {
        "name": "small",
        "metric": "accuracy",
        "at": 2,
        "axes": {axis: list(names) for axis, names in plan.axes.items()},
        "rows": "participation",
        "columns": "compression",
        "seeds": [1, 2],
        "cells": cells,
    }
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "sweep.json").write_text(json.dumps(document))
    return reports.read(plan.out)


def kept(plan: Sweep) -> list[dict[str, str]]:
    """The figures as they come back from their file."""
    text = figures.text(figures.lines(swept(plan), plan.out, STUDY.beside))
    return list(csv.DictReader(io.StringIO(text)))


def test_labels() -> None:
    assert (fixed("m_20"), fixed("m_all"), fixed("isp_uniform")) == ("20", "all", None)
    assert label("m_20") == "m = 20" and label("isp_pow_d", "topk_5") == "POW-D + ISP, Top-K 5 %, EF14"


def test_figures_come_back_as_they_were(plan: Sweep) -> None:
    stored = kept(plan)
    assert len(stored) == len(plan.cells) == 12
    for metric, wanted in (("accuracy", (0.90, 0.92)), ("g_mean", (0.5, 0.7))):
        found = figures.results(plan, stored, metric)
        group = found.panels[0].cells["m_4", "none"]
        assert group.values == pytest.approx(wanted), "the mean of the last two evaluations"
        assert [cell["updates"] for cell in group.cells] == [12, 12]
        assert found.panels[0].cells["isp_uniform", "topk_5"].open


def test_the_table_says_what_it_costs_and_who_is_dominated(plan: Sweep) -> None:
    stored = kept(plan)
    text = table.against_uploads(STUDY, [figures.results(plan, stored, m) for m in ("accuracy", "g_mean")])
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    # s = √2 percent, so its mean over two seeds is known to 1
    assert lines["m = 4"] == "| m = 4 | 12 | 3.0 | 91.00 ± 1.00 | 60.00 ± 10.00 |  |  |  |  |  |"
    assert (
        lines["uniform + ISP"]
        == "| uniform + ISP | 9 | 2.2 | 90.00 ± 0.00 | 60.00 ± 10.00 | -25% | -1.00 | +0.00 |  |  |"
    )
    assert lines["m = 4, Top-K 5 %, EF14"].endswith("| m = 2 |  |"), "dearer, and worse in accuracy alone"
    assert lines["m = 2"].endswith("| -50% | -20.00 | +0.00 |  |  |"), "cheaper, so not dominated"
    assert lines["uniform + ISP, Top-K 5 %, EF14"].startswith("| uniform + ISP, Top-K 5 %, EF14 | not measured |")
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_without_figures_nothing_is_measured(plan: Sweep) -> None:
    text = table.against_uploads(STUDY, [figures.results(plan, []), figures.results(plan, [], "g_mean")])
    assert text.count(table.NOT_MEASURED) == 6
    assert table.against_time("accuracy", []).count(table.NOT_MEASURED) == 3
    drawing = picture.drawn([("digits", figures.results(plan, []))])
    assert not series(drawing) and ET.fromstring(drawing).tag.endswith("svg")


def series(drawing: bytes) -> set[str]:
    names = {str(element.get("id")) for element in ET.fromstring(drawing).iter()}
    return {name for name in names if name.startswith(("none.", "topk_5."))}


def test_the_picture_has_what_is_measured_and_is_always_the_same(plan: Sweep) -> None:
    found = figures.results(plan, kept(plan))
    drawing = picture.drawn([("digits", found), ("again", found)])
    assert drawing == picture.drawn([("digits", found), ("again", found)])
    assert series(drawing) == {"none.fixed", "none.isp_uniform", "topk_5.fixed"}
    assert b"<dc:date>" not in drawing
    stored = kept_with(plan, "0.65")
    assert drawing != picture.drawn([("digits", figures.results(plan, stored)), ("again", found)])


def kept_with(plan: Sweep, accuracy: str) -> list[dict[str, str]]:
    stored = list(csv.DictReader(io.StringIO(figures.text(figures.lines(reports.read(plan.out), plan.out)))))
    return [{**line, "accuracy": accuracy} if line["accuracy"] else line for line in stored]


def evaluated(values: list[tuple[float, float | None]], clients: int) -> list[dict[str, Any]]:
    """Lines of a run: the clock after each exchange, and what was measured then."""
    return [
        {"exchange": i, "round": i + 1, "clients": list(range(clients)), "info": {"clock": clock}}
        | ({} if value is None else {"accuracy": value})
        for i, (clock, value) in enumerate(values)
    ]


def test_a_level_is_the_mean_of_the_last_evaluations() -> None:
    lines = evaluated([(1.0, 0.2), (2.0, None), (3.0, 0.6), (4.0, 0.4)], clients=3)
    found = pace.moments(lines, "accuracy", 2)
    assert found == [pace.Moment(3.0, 9, pytest.approx(0.4)), pace.Moment(4.0, 12, pytest.approx(0.5))]
    assert pace.reached(found, 0.45) == found[1] and pace.reached(found, 0.6) is None


def test_time_until_the_level_of_the_one_that_waits(tmp_path: Path) -> None:
    runs = {
        "fedavg": evaluated([(100.0, 0.5), (200.0, 0.7), (300.0, 0.9)], clients=4),
        "fedbuff": evaluated([(10.0, 0.6), (20.0, 0.8), (30.0, 1.0), (40.0, 0.9)], clients=2),
        "fedasync": evaluated([(10.0, 0.1), (20.0, 0.2)], clients=1),
    }
    for name, lines in runs.items():
        run_folder(tmp_path / name, lines)
    document = {
        "name": "timed", "metric": "accuracy", "at": 2, "axes": {"strategy": list(runs)}, "rows": "strategy",
        "columns": None, "seeds": [1],
        "cells": [
            {"settings": {"strategy": name}, "seed": 1, "key": name, "clean": True, "state": "finished",
             "message": "", "value": lines[-1]["accuracy"], "folder": name}
            for name, lines in runs.items()
        ],
    }  # fmt: skip
    told = pace.lines(reports.Results(document), tmp_path, "fedavg")
    by = {line["strategy"]: line for line in told}
    assert by["fedavg"]["target"] == pytest.approx(0.8)
    assert (by["fedavg"]["reached_clock"], by["fedavg"]["reached_updates"]) == (300.0, 12)
    assert (by["fedbuff"]["reached_clock"], by["fedbuff"]["reached_updates"], by["fedbuff"]["clock"]) == (30.0, 6, 40.0)
    assert by["fedasync"]["reached_clock"] == "" and by["fedasync"]["updates"] == 2
    text = table.against_time("accuracy", list(csv.DictReader(io.StringIO(figures.text(told)))))
    assert "| FedBuff | 30 | 0.10 | 6 | 90.00 ± 0.00 | 8 |" in text
    assert "| FedAvg | 300 | 1.00 | 12 | 90.00 ± 0.00 | 12 |" in text
    assert "| FedAsync | never |  |  | 20.00 ± 0.00 | 2 |" in text


def test_the_configs_are_those_that_the_table_speaks_of() -> None:
    for study in STUDIES:
        plan = command.planned(study.name)
        assert (plan.rows, plan.columns, plan.at, len(plan.seeds)) == ("participation", "compression", 10, 5)
        assert study.baseline in plan.axes["participation"]
        for cell in plan.cells:
            run = cell.config.run
            assert run.rounds == 150 and run.evaluate_last == plan.at, "the mean of the last ten rounds"
            assert label(cell.settings["participation"]) != cell.settings["participation"]
    timed = command.planned(TIMED)
    assert WAITING in timed.axes["strategy"] and len(timed.seeds) == 3


def test_everybody_is_on_one_clock_and_evaluated_after_as_many_answers() -> None:
    found = {}
    for cell in command.planned(TIMED).cells:
        options = cell.config.strategy.options
        name, at_work = cell.settings["strategy"], cell.config.participation
        assert at_work is not None and isinstance(at_work.count, int)
        buffer = 1 if cell.config.strategy.name == "fedasync" else options["buffer"]
        assert (buffer >= at_work.count) == (name == WAITING)
        found[name] = {
            "at work": at_work.count,
            "answers": buffer * cell.config.run.evaluate_every,
            **{key: value for key, value in options.items() if key.startswith("delay") or key == "per_step"},
        }
    assert len({json.dumps(one, sort_keys=True) for one in found.values()}) == 1 and len(found) == 3


def test_the_page_in_docs_is_that_of_the_stored_figures() -> None:
    text, _ = command.block()
    page = command.PAGE.read_text()
    assert filled(page, command.COMMAND, text) == page, "run `python -m bench.participation --draw`"
