"""The pure parts of the benchmarks: what is computed from stored results, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import checks, run, table
from bench.arms.catalogue import arms, cells
from bench.checks import Check
from bench.processes import together
from bench.profile import Clock
from bench.ray_memory import slope
from bench.results import Cell, Results, read
from bench.run import share
from bench.tasks import TASKS


def raw(
    task: str, arm: str, seconds: list[float], *, cohort: int = 100, rounds: int = 4, **more: Any
) -> dict[str, Any]:
    return {
        "task": task,
        "arm": arm,
        "title": arm.upper(),
        "threads": 1,
        "processes": 1,
        "cohort": cohort,
        "clients": 1000,
        "parameters": 4810,
        "sitting": "2026-01-01 00:00",
        "failed": None,
        "startup_s": 2.0,
        "first_round_s": 0.5,
        "peak_memory_bytes": 300 * 2**20,
        "serialised_bytes": 0,
        "repetitions": [{"seconds": s, "rounds": rounds} for s in seconds],
        **more,
    }


def stored(*cells: dict[str, Any], **machine: Any) -> Results:
    return Results(machine, {(cell["task"], cell["arm"]): Cell(cell) for cell in cells}, {})


def outcome(results: Results, what: str, *, ends: bool = False) -> Check:
    [found] = [c for c in checks.checks(results) if (c.what.endswith(what) if ends else what in c.what)]
    return found


def test_a_rate_is_the_median_over_repetitions() -> None:
    cell = Cell(raw("mlp-100", "pfl", [4.0, 1.0, 2.0], cohort=100, rounds=4))
    assert cell.rates == [100.0, 400.0, 200.0]
    assert (cell.rate, cell.seconds) == (200.0, 0.5)


def test_the_best_is_the_fastest_that_did_not_fail() -> None:
    results = stored(
        raw("mlp-100", "pfl", [2.0]),
        raw("mlp-100", "pfl-processes", [1.0]),
        raw("mlp-100", "pfl-threads", [0.1], failed="it ended"),
        raw("mlp-100", "plain", [0.5]),
        raw("cnn", "pfl", [0.01]),
    )
    best = results.best("mlp-100", "pfl*")
    assert best is not None and best.arm == "pfl-processes"
    named = results.best("mlp-100", "pfl", "plain")
    assert named is not None and named.arm == "plain"
    assert results.best("mlp-100", "flower") is None
    assert results.get("mlp-100", "pfl-threads") is None


def test_a_promise_is_met_from_its_bound_on() -> None:
    assert Check("", "times", 15.0, 15.0).met is True
    assert Check("", "times", 15.0, 14.9).met is False
    assert Check("", "s", 10.0, 10.1, at_most=True).met is False
    assert Check("", "s", 10.0, 5.0, at_most=True).margin == pytest.approx(0.5)
    assert Check("", "times", 10.0, 12.0).margin == pytest.approx(0.2)
    assert Check("", "times", 10.0, None).met is None


@pytest.mark.parametrize(("seconds", "ratio", "met"), [(1.0, 16.0, True), (2.0, 8.0, False)])
def test_the_ratio_to_pfl_takes_the_best_of_both(seconds: float, ratio: float, met: bool) -> None:
    results = stored(
        raw("mlp-100", "fedopt-serial", [50.0]),
        raw("mlp-100", "fedopt-stacked", [seconds]),
        raw("mlp-100", "pfl", [32.0]),
        raw("mlp-100", "pfl-threads", [16.0]),
        raw("mlp-100", "pfl-processes", [4.0]),  # told in the figures, but not one process
    )
    check = outcome(results, "cohort 100 of 1000: fedopt against pfl")
    assert check.measured == pytest.approx(ratio)
    assert check.met is met
    assert f"against PFL-PROCESSES: {4.0 / seconds:.1f}" in check.note


def test_auto_is_held_against_fixed_executors_and_against_peers() -> None:
    results = stored(
        raw("mlp-10", "fedopt-auto", [1.0], plan={"choice": "stacked"}),
        raw("mlp-10", "fedopt-ray-stacked", [0.9]),
        raw("mlp-10", "pfl-processes", [0.5]),
        raw("mlp-10", "plain", [0.1]),
    )
    fixed = outcome(results, "cohort 10 of 100: auto against its best fixed")
    assert fixed.measured == pytest.approx(0.9) and fixed.met is False and "chose stacked" in fixed.note
    peer = outcome(results, "cohort 10 of 100: auto against the fastest peer")
    assert peer.measured == pytest.approx(0.5) and peer.met is False  # the plain loop is no peer


def test_the_fused_lstm_of_peers_is_a_promise_of_its_own() -> None:
    results = stored(
        raw("lstm", "fedopt-auto", [1.0]), raw("lstm", "pfl", [2.0]), raw("lstm", "pfl-processes-fused", [0.25])
    )
    assert outcome(results, "all roles: auto against the fastest peer with").measured == pytest.approx(0.25)
    [same] = [
        check for check in checks.checks(results) if check.what.endswith("all roles: auto against the fastest peer")
    ]
    assert same.measured == pytest.approx(2.0)


def test_null_work_counts_exchanges_and_knows_its_floor() -> None:
    results = stored(
        raw("null-4810", "fedopt-stacked", [0.01], cohort=50, rounds=10),
        limits={"copy_gb_per_s_1": 10.0},
    )
    check = outcome(results, "4,810 parameters, cohort 50, in one process")
    assert check.measured == pytest.approx(1000.0)
    # 50 answers of 4,810 floats of 4 bytes at 10 GB/s
    floor = checks.floor_seconds(results, results.cells["null-4810", "fedopt-stacked"])
    assert floor == pytest.approx(50 * 4810 * 4 / 10e9)


def test_dormant_clients_are_held_against_fewer() -> None:
    results = stored(
        raw("dormant-1e4", "fedopt-auto", [1.0], cohort=1000, rounds=10),
        raw("dormant-1e6", "fedopt-auto", [1.05], cohort=1000, rounds=10, startup_s=11.0, peak_memory_bytes=1e9),
    )
    assert outcome(results, "against 10,000").measured == pytest.approx(1.05)
    assert outcome(results, "against 10,000").met is True
    assert outcome(results, "start-up").met is False
    assert outcome(results, "peak memory").met is True


def test_without_results_nothing_is_promised_away() -> None:
    found = checks.checks(stored())
    assert len(found) > 20
    assert {check.met for check in found} == {None}


@given(
    st.floats(1e-5, 500.0), st.floats(0.1, 30.0), st.sampled_from([1, 20]), st.integers(1, 5), st.floats(10.0, 500.0)
)
def test_a_slow_arm_runs_fewer_rounds_but_two(
    each: float, rep: float, least: int, repetitions: int, cell: float
) -> None:
    count, times = share(each, rep, least=least, repetitions=repetitions, cell_s=cell)
    assert count >= least and times >= 1
    assert count * times >= 2 or repetitions == 1
    if count > least and times > 1:
        assert count * times * each <= cell * 1.01
    if each * max(count, 1) * repetitions < cell and repetitions > 1:
        assert times == repetitions  # what fits is repeated as often as asked


def test_fast_arms_fill_the_repetition() -> None:
    assert share(0.01, 3.0, least=1, repetitions=3, cell_s=240.0) == (300, 3)
    assert share(0.5, 4.0, least=20, repetitions=3, cell_s=240.0) == (20, 3)
    assert share(100.0, 4.0, least=1, repetitions=3, cell_s=240.0) == (1, 2)


def test_shared_memory_counts_once() -> None:
    assert together([(300, 100), (250, 120), (90, 80)]) == 200 + 130 + 10 + 120
    assert together([]) == 0


def test_the_slope_is_that_of_the_line() -> None:
    samples = [(rounds, int(50e6 + 2**20 * 0.03 * rounds)) for rounds in range(0, 1000, 10)]
    assert slope(samples) == pytest.approx(3.0, abs=1e-3)


def test_nested_phases_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.profile.time.perf_counter", lambda: now[0])
    clock = Clock()

    def inner() -> None:
        now[0] += 2.0

    timed = clock.around("inner", inner)

    def outer() -> None:
        now[0] += 1.0
        timed()
        timed()
        now[0] += 0.5

    clock.around("outer", outer)()
    assert clock.seconds == {"inner": 4.0, "outer": 1.5}


def test_arms_have_names_of_their_own() -> None:
    for cores in (1, 2, 8):
        names = [arm.name for arm in arms(cores)]
        assert len(set(names)) == len(names)
    wanted = {(task.name, arm.name) for task, arm in cells(2)}
    assert ("cnn", "plain-processes") in wanted
    assert ("lstm", "pfl-fused") in wanted and ("cnn", "pfl-fused") not in wanted
    assert not any(task == "dormant-1e6" and arm.startswith("flower") for task, arm in wanted)
    assert all(arm.threads == 1 for _, arm in cells(2, quick=True))
    assert {task.name for task, _ in cells(2, quick=True)} == {name for name, task in TASKS.items() if task.quick}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    machine = {"processor": "Some CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux 6", "python": "3.11.7",
               "torch": "2.13.0"}  # fmt: skip
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    for cell in (
        raw("mlp-100", "pfl", [2.0, 4.0, 3.0], accuracy=0.875, accuracy_rounds=50),
        raw("mlp-100", "flower", [], failed="warm: no answer | within 300 s"),
    ):
        (tmp_path / f"{cell['task']}.{cell['arm']}.json").write_text(json.dumps(cell))
    (tmp_path / "ray_memory.json").write_text(
        json.dumps({"task": "mlp-100", "rounds": 1000, "workers": 2, "inner": "stacked", "seconds": 60.0,
                    "first_mb": 900.0, "last_mb": 905.0, "mb_per_100_rounds": 0.5, "samples": []})
    )  # fmt: skip
    return tmp_path


def test_the_page_says_what_is_stored_and_what_is_not(folder: Path) -> None:
    page = table.page([read(folder)])
    assert "| PFL | 1 x 1 | 133 (100 to 200) | 0.75 | 300 | 0 | 2.0 | 0.50 | 0.875 (50) | 3 times 4 |" in page
    assert "FLOWER: failed (warm: no answer / within 300 s)." in page
    assert "rises by +0.50 MB per 100 rounds" in page
    assert "## Some CPU, 2 cores" in page
    assert "0 met, 0 not met" in page
    assert page.count("Not measured.") == len(TASKS) - 1 + 1  # the other tasks, the profiles
    assert "Not measured (`python -m bench.gpu` on a machine with one)." in page


def test_every_row_of_a_table_has_its_columns(folder: Path) -> None:
    widths: set[int] = set()
    for line in table.page([read(folder)]).splitlines():
        if line.startswith("|"):
            widths.add(line.count("|"))
        elif widths:
            assert len(widths) == 1
            widths = set()


def test_the_page_in_docs_is_that_of_the_stored_results() -> None:
    folders = sorted(path for path in table.RESULTS.glob("*") if path.is_dir())
    found = [results for results in map(read, folders) if results.cells or results.others]
    assert table.PAGE.read_text() == table.page(found), "run `python -m bench.table`"


class Scripted:
    """In place of a process: rounds that take what is written here, and what it was asked."""

    started: ClassVar[list[Scripted]] = []
    seconds = 0.01
    warm = 0.01

    def __init__(self, command: list[str], environment: dict[str, str], startup_s: float) -> None:
        self.command, self.startup_s, self.peak, self.rounds, self.ended = command, float(len(self.started)), 5, 0, 0
        self.started.append(self)

    def ask(self, limit_s: float, **question: Any) -> dict[str, Any]:
        if question["do"] != "rounds":
            return {"accuracy": 0.5, "rounds": 2, "seconds": 1.0}
        each = self.warm if self.rounds < 5 else self.seconds
        self.rounds += question["count"]
        return {"seconds": each * question["count"], "rounds": question["count"]}

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.started = []
    monkeypatch.setattr(run, "Process", Scripted)
    monkeypatch.setattr(run, "python", lambda kind: Path("python"))
    return Scripted


def measured(scripted: type[Scripted], task: str, *names: str) -> dict[str, dict[str, Any]]:
    chosen = [(TASKS[task], arm) for arm in arms(2) if arm.name in names]
    return {cell["arm"]: cell for cell in run.measure(chosen, "2026-01-01 00:00", 1.0)}


def test_executors_that_are_compared_with_auto_have_a_process_for_each_repetition(scripted: type[Scripted]) -> None:
    found = measured(scripted, "mlp-10", "fedopt-auto", "fedopt-stacked", "fedopt-serial", "pfl")
    starts = [one.command[2].rpartition(".")[2] + "".join(one.command[-1:]) for one in scripted.started]
    assert starts == ["fedoptserial", "pflmlp-10", *["fedoptstacked", "fedoptauto", "fedoptauto", "fedoptstacked"],
                      "fedoptstacked", "fedoptauto"]  # fmt: skip
    for name, processes in {"fedopt-auto": 3, "fedopt-stacked": 3, "fedopt-serial": 1, "pfl": 1}.items():
        assert len(found[name]["each"]["startup_s"]) == processes
        assert len(found[name]["repetitions"]) == 3 and found[name]["failed"] is None
    assert found["fedopt-auto"]["startup_s"] == 4.0, "the median of its processes"
    assert all(one.ended == 1 for one in scripted.started), "nothing stays behind"


def test_a_repetition_that_was_taken_for_slow_is_filled(
    scripted: type[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "warm", 0.5)
    found = measured(scripted, "mlp-10", "pfl", "fedopt-auto")
    for cell in found.values():
        for one in cell["repetitions"]:
            assert one["seconds"] == pytest.approx(0.01 * one["rounds"])
            assert one["seconds"] >= run.ENOUGH * TASKS["mlp-10"].rep_seconds


def test_tasks_that_are_compared_take_turns_with_each_other() -> None:
    assert TASKS["dormant-1e4"].turns == TASKS["dormant-1e6"].turns
    assert TASKS["mlp-10"].turns == "mlp-10"
