"""Reading a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedopt.report import record as run
from fedopt.types import FedoptError

LINES: list[dict[str, Any]] = [
    {
        "exchange": 0,
        "round": 1,
        "asked": 3,
        "answered": 2,
        "clients": [0, 2],
        "rejected": [{"client": 1, "reason": "NaN"}],
        "train_loss": 2.0,
        "bytes_up": 20,
        "bytes_down": 30,
        "seconds": {"plan": 0.1, "map": 0.5},
        "elapsed": 0.7,
        "info": {"trust": 0.5, "who": "me", "many": [1, 2]},
    },
    {
        "exchange": 1,
        "round": 1,
        "asked": 3,
        "answered": 3,
        "clients": [0, 1, 2],
        "rejected": [],
        "train_loss": None,
        "loss": 1.5,
        "accuracy": 0.6,
        "recall": {"N": 0.9, "Q": None},
        "bytes_up": 30,
        "bytes_down": 30,
        "seconds": {"plan": 0.1, "map": 0.3},
        "elapsed": 1.2,
        "info": {"trust": 0.75},
    },
    {
        "exchange": 2,
        "round": 2,
        "asked": 1,
        "answered": 1,
        "clients": [2],
        "rejected": [],
        "loss": 1.75,
        "accuracy": 0.8,
        "recall": {"N": 0.8, "Q": 0.25},
        "bytes_up": 10,
        "bytes_down": 10,
        "seconds": {"plan": 0.2, "map": 0.2, "evaluate": 0.5},
        "elapsed": 2.2,
    },
    {
        "exchange": 3,
        "round": 3,
        "asked": 1,
        "answered": 1,
        "clients": [2],
        "rejected": [],
        "loss": float("nan"),
        "accuracy": 0.7,
        "bytes_up": 10,
        "bytes_down": 10,
        "seconds": {"plan": 0.2},
        "elapsed": 3.0,
    },
]


@pytest.fixture
def record() -> run.RunRecord:
    return run.RunRecord({}, {"name": "r"}, {}, [dict(line) for line in LINES], Path("folder"))


def test_a_run_folder_is_read_whole(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=7)
    record = run.read(folder)
    assert record.config["aggregator"] == {"name": "krum", "f": 2}
    assert record.info["strategy"] == "FedAvg"
    assert len(record.partition["clients"]) == 30
    assert [line["exchange"] for line in record.lines] == list(range(7))
    assert record.name == "krum against IPM"
    assert record.path == folder


@pytest.mark.parametrize("tail", ['{"exchange": 40, "rou', '{"exchange": 40, "round": 41, "loss": 0.', "\0\0\0"])
def test_a_last_line_that_was_cut_off_is_ignored(fake_run: Callable[..., Path], tail: str) -> None:
    assert len(run.read(fake_run(tail=tail)).lines) == 40


def test_a_last_line_without_its_newline_but_whole_counts(fake_run: Callable[..., Path]) -> None:
    assert len(run.read(fake_run(tail='{"exchange": 40, "round": 41}')).lines) == 41


def test_a_run_before_its_first_exchange_has_no_lines(fake_run: Callable[..., Path]) -> None:
    record = run.read(fake_run(rounds=0))
    assert record.lines == []
    assert run.headline(record) is None
    assert run.final(record) is None
    assert run.best(record) is None
    assert run.totals(record) == run.Totals(0, 0, 0, 0, 0, 0, 0, 0, 0.0, {})


def test_what_is_missing_is_named(fake_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = fake_run()
    with pytest.raises(FedoptError, match=r"nowhere: a run folder was needed"):
        run.read(tmp_path / "nowhere")
    (folder / "partition.json").unlink()
    (folder / "run.json").unlink()
    with pytest.raises(FedoptError, match=r"run\.json and partition\.json missing.*run\.out"):
        run.read(folder)


def test_damage_is_named_with_its_place(fake_run: Callable[..., Path]) -> None:
    def damaged(file: str, text: str) -> Path:
        folder = fake_run(file.replace(".", "-") + str(len(text)))
        (folder / file).write_text(text)
        return folder

    with pytest.raises(FedoptError, match=r"config\.toml: not readable as TOML"):
        run.read(damaged("config.toml", "= 3"))
    with pytest.raises(FedoptError, match=r"run\.json: not readable as JSON"):
        run.read(damaged("run.json", "{"))
    with pytest.raises(FedoptError, match=r"partition\.json: a JSON object was needed, list was given"):
        run.read(damaged("partition.json", "[]"))
    with pytest.raises(FedoptError, match=r"metrics\.jsonl:2: one JSON object.*'half a li'"):
        run.read(damaged("metrics.jsonl", '{"exchange": 0, "round": 1}\nhalf a li\n{"exchange": 1, "round": 2}\n'))
    with pytest.raises(FedoptError, match=r"metrics\.jsonl:1: one JSON object"):
        run.read(damaged("metrics.jsonl", "[1, 2]\n"))


def test_an_exchange_that_stands_twice_is_an_error(fake_run: Callable[..., Path]) -> None:
    with pytest.raises(FedoptError, match=r"metrics\.jsonl:41: exchange 3 is recorded a second time.*run\.out"):
        run.read(fake_run(tail='{"exchange": 3, "round": 4}\n'))


def test_series_stand_against_any_axis(record: run.RunRecord) -> None:
    assert run.series(record, "accuracy") == ([1, 2, 3], [0.6, 0.8, 0.7])
    assert run.series(record, "accuracy", "exchange").x == [1, 2, 3]
    assert run.series(record, "accuracy", "bytes").x == [50 + 60, 50 + 60 + 20, 50 + 60 + 40]
    assert run.series(record, "accuracy", "seconds").x == [1.2, 2.2, 3.0]
    assert run.series(record, "accuracy", "updates").x == [5, 6, 7]
    with pytest.raises(FedoptError, match="messages, time were possible, 'weeks' was given"):
        run.series(record, "accuracy", "weeks")  # type: ignore[arg-type]


def test_seconds_without_elapsed_are_those_of_the_phases() -> None:
    lines: list[dict[str, Any]] = [
        {"exchange": i, "round": i + 1, "seconds": {"plan": 1.0, "map": 2.0}} for i in range(3)
    ]
    record = run.RunRecord({}, {}, {}, lines, Path("r"))
    assert run.positions(record, "seconds") == [3.0, 6.0, 9.0]


def test_series_leave_out_what_is_no_finite_number(record: run.RunRecord) -> None:
    assert run.series(record, "loss") == ([1, 2], [1.5, 1.75])
    assert run.series(record, "train_loss") == ([1], [2.0])
    assert run.series(record, "recall.Q") == ([2], [0.25])
    assert run.series(record, "recall.missing") == ([], [])
    assert run.series(record, "accuracy.deeper") == ([], [])
    assert run.number(True) is None
    assert run.number("3") is None
    assert run.number(math.inf) is None
    assert run.number(10**400) is None


def test_fields_are_the_numbers_of_a_group(record: run.RunRecord) -> None:
    assert run.fields(record, "recall") == ["N", "Q"]
    assert run.fields(record, "info") == ["trust"]
    info = {"trust": {"0": 0.5}, "kept_model": "why", "on": True, "": 1.0, "gone": None, "norm": 2}
    lines = [{"exchange": 0, "round": 1, "info": info, "recall": "high"}, {"exchange": 1, "round": 2, "info": [1.0]}]
    odd = record._replace(lines=lines)
    assert run.fields(odd, "info") == ["norm"]
    assert run.fields(odd, "recall") == []
    assert run.series(odd, "info.trust") == ([], [])


def test_final_and_best_and_rounds_to_a_target(record: run.RunRecord) -> None:
    assert run.headline(record) == "accuracy"
    assert run.final(record) == (0.7, 3)
    assert run.best(record) == (0.8, 2)
    assert run.best(record, "loss") == (1.5, 1)
    assert run.final(record, "loss") == (1.75, 2)
    assert run.rounds_to(record, 0.8) == 2
    assert run.rounds_to(record, 0.6) == 1
    assert run.rounds_to(record, 0.81) is None
    assert run.rounds_to(record, 1.6, "loss") == 1
    assert run.rounds_to(record, 1.4, "loss") is None


def test_without_accuracy_the_loss_is_the_headline(record: run.RunRecord) -> None:
    lines = [{k: v for k, v in line.items() if k != "accuracy"} for line in record.lines]
    assert run.headline(record._replace(lines=lines)) == "loss"
    lines = [{"exchange": 0, "round": 1, "client_eval": {"loss": 3.0, "score": 0.4}, "loss": 2.0}]
    assert run.headline(record._replace(lines=lines)) == "client_eval.score"
    assert run.final(record._replace(lines=lines)) == (0.4, 1)


def test_totals_are_the_sums(record: run.RunRecord) -> None:
    totals = run.totals(record)
    assert totals._replace(phases={}) == run.Totals(3, 4, 8, 7, 7, 1, 70, 80, 3.0, {})
    assert totals.phases == pytest.approx({"plan": 0.6, "map": 1.0, "evaluate": 0.5})


def test_json_nan_and_null_read_alike(fake_run: Callable[..., Path]) -> None:
    folder = fake_run(rounds=0)
    lines = [{"exchange": 0, "round": 1, "loss": math.nan}, {"exchange": 1, "round": 2, "loss": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.series(run.read(folder), "loss") == ([], [])
