"""Sweeps: what a file spans, and that every cell is run once, whatever happens to the processes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

import fedopt as library
from fedopt import ConfigError, aggregators
from fedopt.engine.checkpoint import newest
from fedopt.report.sweep import read as results_of
from fedopt.sweep import Ledger, grid, read, results, run
from fedopt.sweep.cell import work
from fedopt.sweep.ledger import LOCK, look
from fedopt.sweep.view import SweepView

Small = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Command = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]
Same = Callable[[Path, Path], None]

RULES: dict[str, Any] = {"mean": {"aggregator": "mean"}, "krum": {"aggregator": {"name": "krum", "f": 2}}}
ATTACKS: dict[str, Any] = {
    "none": {"attack": []},
    "sign_flip": {"attack": [{"name": "sign_flip", "share": 0.25}]},
    "alie": {"attack": [{"name": "alie", "share": 0.25}]},
    "label_flip": {"attack": [{"name": "label_flip", "share": 0.25}]},
}
SPLITS: dict[str, Any] = {"iid": {"data": {"partition": "iid"}}, "dirichlet": {"data": {"partition": "dirichlet"}}}

# a rule that notes every exchange in which it is used
COUNTED = """
import os
from typing import Literal

from torch import Tensor

from fedopt.registry import declare


@declare(reference="made up", scope="vector", examples=({"kind": "mean"},))
def counted(updates: Tensor, *, kind: Literal["mean", "median", "first"]) -> Tensor:
    with open("applied.txt", "a") as file:
        file.write(f"{kind} {os.getpid()}\\n")
    return {"mean": updates.mean(0), "median": updates.median(0).values, "first": updates[0]}[kind]


@declare(reference="made up", scope="vector", examples=({},))
def breaks(updates: Tensor) -> Tensor:
    raise RuntimeError("out of rope")


@declare(reference="made up", scope="vector", examples=({},))
def dies(updates: Tensor) -> Tensor:
    os.kill(os.getpid(), 9)
    return updates[0]
"""


def swept(small: Small, axes: dict[str, Any], changes: dict[str, Any] | None = None, **table: Any) -> dict[str, Any]:
    """A small sweep as a document: eight clients, all of whom take part."""
    base = {"participation": None, "run.rounds": 2, "run.evaluate_clients_every": 0, **(changes or {})}
    return {**small(base), "sweep": {"reports": False, "axes": axes, **table}}


def cells(root: Path) -> list[Path]:
    # not deeper: what lies in a run folder comes and goes
    return sorted(path.parent for path in [*root.glob("*/config.toml"), *root.glob("cells/*/config.toml")])


def status(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((folder / "run.json").read_text())["status"])
    return ""


def finished(root: Path) -> list[Path]:
    return [folder for folder in cells(root) if status(folder) == "finished"]


def count(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stamps(folders: list[Path]) -> dict[Path, tuple[int, int]]:
    """What a file is known by that nobody has written again."""
    files = [folder / name for folder in folders for name in ("metrics.jsonl", "run.json", "model.safetensors")]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def table_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "sweep.json").read_text())
    return found


def states(root: Path) -> dict[str, str]:
    """The state of each cell by its settings."""
    return {" ".join(cell["settings"].values()): cell["state"] for cell in table_of(root)["cells"]}


# the file


def test_cells_are_all_combinations(small: Small, write: Write) -> None:
    document = swept(small, {"rule": RULES, "attack": ATTACKS, "split": SPLITS}, seeds=[4, 7], name="all")
    plan = read(write(document))
    assert len(plan.cells) == len(plan.runs) == 2 * 4 * 2 * 2
    assert plan.axes == {"rule": ("mean", "krum"), "attack": tuple(ATTACKS), "split": ("iid", "dirichlet")}
    assert (plan.rows, plan.columns, plan.out, plan.seeds) == ("rule", "attack", Path("runs/all"), (4, 7))
    by = {(*cell.settings.values(), cell.seed): cell.config for cell in plan.cells}
    one = by["krum", "alie", "dirichlet", 7]
    assert one.aggregator is not None and (one.aggregator.name, one.aggregator.options) == ("krum", {"f": 2})
    assert [(a.name, a.share) for a in one.attack] == [("alie", 0.25)]
    assert (one.data.partition.name, one.run.seed, one.run.rounds) == ("dirichlet", 7, 2)
    # what a setting does not name stays as in the base
    assert (one.data.clients, one.data.valid_share, one.model.options) == (8, 0.2, {"hidden": [8]})
    assert by["mean", "none", "iid", 4].attack == []
    assert by["mean", "none", "iid", 4].data.partition.options == {}, "those of another partition mean nothing here"
    assert read(write({**document, "sweep": {**document["sweep"], "rows": "split", "columns": "rule"}})).rows == "split"


def test_a_sweep_may_stand_on_a_base(small: Small, write: Write) -> None:
    document = swept(small, {"rule": RULES})
    section = document.pop("sweep")
    write(document, "below.toml")
    plan = read(write({"base": "below.toml", "run": {"rounds": 5}, "sweep": section}, "robust.toml"))
    assert plan.name == "robust" and plan.seeds == (1,) and plan.columns is None
    assert [(cell.config.run.rounds, cell.config.data.clients) for cell in plan.cells] == [(5, 8)] * 2
    assert (
        read(write({**document, "sweep": section}), ["run.rounds=3", "sweep.seeds=[5]", "sweep.name=x"]).out.name == "x"
    )
    changed = read(write({**document, "sweep": section}), ["run.rounds=3", "sweep.seeds=[5]"])
    assert (changed.cells[1].config.run.rounds, changed.cells[1].seed) == (3, 5)
    assert changed.label(changed.cells[1]) == changed.cells[1].config.run.name == "krum"
    both = read(write({**document, "sweep": {**section, "seeds": [5, 6]}}))
    assert both.label(both.cells[3]) == "krum · seed 6"


def test_paths_reach_into_every_attack(small: Small, write: Write) -> None:
    attacks = {
        "none": {"attack": []},
        "two": {"attack": [{"name": "alie"}, {"name": "sign_flip"}]},
    }
    shares = {"little": {"attack.*.share": 0.125}, "much": {"attack.*.share": 0.25, "optimizer.lr": 0.5}}
    plan = read(write(swept(small, {"attack": attacks, "share": shares})))
    found = {tuple(cell.settings.values()): cell.config for cell in plan.cells}
    assert [a.share for a in found["two", "little"].attack] == [0.125, 0.125]
    assert [a.share for a in found["two", "much"].attack] == [0.25, 0.25], "settings are not shared between cells"
    assert found["two", "little"].optimizer.options["lr"] == 0.1  # type: ignore[union-attr]
    assert found["none", "much"].optimizer.options["lr"] == 0.5  # type: ignore[union-attr]
    # where nobody attacks, their share is no difference
    del shares["much"]["optimizer.lr"]
    plan = read(write(swept(small, {"attack": attacks, "share": shares})))
    assert len(plan.cells) == 4 and len(plan.runs) == 3


def test_single_cells_are_changed_or_skipped(small: Small, write: Write) -> None:
    where = [{"rule": "krum", "split": ["dirichlet"], "set": {"aggregator": {"f": 1}, "run": {"rounds": 7}}}]
    skip = [{"rule": "mean", "split": "iid"}]
    plan = read(write(swept(small, {"rule": RULES, "split": SPLITS}, where=where, skip=skip)))
    found = {tuple(cell.settings.values()): cell.config for cell in plan.cells}
    assert found.keys() == {("mean", "dirichlet"), ("krum", "iid"), ("krum", "dirichlet")}
    options = {key: config.aggregator.options for key, config in found.items() if config.aggregator is not None}
    assert options == {("mean", "dirichlet"): {}, ("krum", "iid"): {"f": 2}, ("krum", "dirichlet"): {"f": 1}}
    assert [config.run.rounds for config in found.values()] == [2, 2, 7]


TWO = {"rule": RULES, "attack": ATTACKS}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"metric": "acuracy"}, r"sweep\.metric: no such measure\. Did you mean 'accuracy'\?"),
    ({"axis": {}}, r"sweep\.axis: unknown key\. Did you mean 'axes'\?"),
    ({"rows": "rules"}, r"sweep\.rows: no axis 'rules'\. Did you mean 'rule'\? Known: rule, attack"),
    ({"rows": "rule", "columns": "rule"}, r"sweep\.columns: 'rule' is the axis of the rows"),
    ({"skip": [{"atack": "alie"}]}, r"sweep\.skip\.0\.atack: no axis 'atack'\. Did you mean 'attack'\?"),
    ({"skip": [{"attack": ["ali"]}]}, r"sweep\.skip\.0\.attack: no setting 'ali'\. Did you mean 'alie'\?"),
    ({"skip": [{}]}, r"sweep\.skip\.0: a condition is needed, e\.g\. rule = 'mean'"),
    ({"skip": [{"rule": ["mean", "krum"]}]}, r"sweep\.skip: every cell is skipped"),
    ({"where": [{"rule": "mean"}]}, r"sweep\.where\.0\.set: a table of changes is needed"),
    ({"at": 0}, r"sweep\.at: 'last', 'best' or a number of last evaluations is needed; 0 was given"),
    ({"at": "first"}, r"sweep\.at: 'last', 'best' or a number"),
    ({"seeds": []}, r"sweep\.seeds: "),
    ({"seeds": [1, 1]}, r"sweep\.seeds: each seed once"),
    ({"axes": {}}, r"sweep\.axes: an axis is needed"),
    ({"axes": {"rule": {}}}, r"sweep\.axes\.rule: a setting is needed"),
    ({"axes": {"rule": {"mean": 3}}}, r"sweep\.axes\.rule\.mean: .*; 3 was given"),
    ({"axes": {"seed": RULES}}, r"sweep\.axes\.seed: an axis cannot be called seed"),
    ({"axes": {"rule": {"x": {"agregator": "mean"}}}}, r"agregator: unknown key\. Did you mean 'aggregator'\?.*= x\)"),
    ({"axes": {"rule": {"x": {"aggregator": "meen"}}}}, r"aggregator\.name: .*Did you mean 'mean'\?.*\(in the cell"),
    ({"axes": {"rule": {"x": {"aggregator": {"name": "krum", "g": 1}}}}}, r"aggregator\.g: unknown option\."),
    ({"axes": {"rule": {"x": {"run": {"seed": 3}}}}}, r"run\.seed: no setting can change it: the seeds of all"),
    ({"axes": {"rule": {"x": {"data.*.share": 3}}}}, r"data\.\*\.share: '\*' stands for every item of a list"),
]  # fmt: skip


@pytest.mark.parametrize("table, message", WRONG)
def test_mistakes_are_found_before_anything_runs(
    table: dict[str, Any], message: str, small: Small, write: Write
) -> None:
    document = swept(small, TWO)
    document["sweep"].update(table)
    with pytest.raises(ConfigError, match=message):
        read(write(document))


def test_an_experiment_is_no_sweep(fedopt: Command, small: Small, write: Write) -> None:
    ran = fedopt("sweep", write(small()))
    assert ran.status == 2 and "has no section [sweep]" in ran.err and "fedopt run" in ran.err


def test_a_sweep_is_no_experiment(fedopt: Command, small: Small, write: Write) -> None:
    document = {**small(), "sweep": {"axes": {"rule": {"mean": {"aggregator": "mean"}}}}}
    ran = fedopt("run", write(document))
    assert ran.status == 2 and "run it with 'fedopt sweep'" in ran.err


def test_the_hash_is_that_of_what_the_numbers_depend_on(small: Small) -> None:
    def key(changes: dict[str, Any]) -> str:
        return grid.fingerprint(library.experiment.configs.load(small(changes)))

    first = key({})
    same: list[dict[str, Any]] = [
        {"run.name": "x", "run.out": "y", "run.checkpoint_every": 7, "run.track": ["tensorboard"]},
        {"run.seed": 1, "data.test_share": 0.2, "executor": "stacked"},  # the defaults
        {"participation": {"count": 4, "name": "uniform"}},  # in another order
    ]
    assert {key(changes) for changes in same} == {first}
    other: list[dict[str, Any]] = [
        {"run.rounds": 10},
        {"run.seed": 2},
        {"optimizer.lr": 0.2},
        {"executor": "serial"},
        {"attack": [{"name": "alie", "share": 0.25}]},
        {"aggregator": {"name": "mean"}},
    ]
    assert len({first, *map(key, other)}) == 1 + len(other)


def test_a_cell_is_another_one_where_a_default_changed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(aggregator: dict[str, Any]) -> str:
        changes = {"aggregator": aggregator, "attack": [{"name": "ipm", "share": 0.2}]}
        return grid.fingerprint(library.experiment.configs.load(small(changes)))

    plain = key({"name": "centered_clipping"})
    assert key({"name": "centered_clipping", "iterations": 1}) == plain, "a default that is given"
    assert key({"name": "centered_clipping", "iterations": 2}) != plain
    options = aggregators.registry.options("centered_clipping")
    others = {**options, "iterations": options["iterations"]._replace(default=2)}
    monkeypatch.setattr(aggregators.registry, "options", lambda name: others)
    assert key({"name": "centered_clipping"}) != plain, "another default"
    assert key({"name": "centered_clipping", "iterations": 1}) == plain


# running it


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a module of rules; the file in which `counted` notes its exchanges."""
    (tmp_path / "counted.py").write_text(COUNTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "applied.txt"


def applied(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


def counting(*kinds: str) -> dict[str, Any]:
    return {kind: {"aggregator": {"name": "counted:counted", "kind": kind}} for kind in kinds}


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, f"ended too early:\n{process.communicate()}"
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def begin(start: Start) -> Iterator[Start]:
    """As `start`; what still runs at the end of the test, of the process or of those that it started, is killed."""
    begun: list[subprocess.Popen[str]] = []

    def call(*words: object) -> subprocess.Popen[str]:
        begun.append(start(*words))
        return begun[-1]

    yield call
    for process in begun:
        if process.poll() is None:
            for pid in (process.pid, *children(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_repeats_no_finished_cell(
    small: Small, write: Write, begin: Start, same: Same, counted: Path, tmp_path: Path
) -> None:
    rounds = 10
    axes = {"rule": counting("mean", "median", "first"), "attack": ATTACKS, "split": SPLITS}
    changes = {"run.rounds": rounds, "run.checkpoint_every": 2, "run.evaluate_every": 5, "executor": "serial"}
    document = swept(small, axes, {**changes, "model.hidden": [4]}, out=str(tmp_path / "out"))
    config = write(document)
    process = begin("sweep", config)
    root = tmp_path / "out" / "cells"

    def half_way() -> bool:
        done = len(finished(root))
        return done >= 11 and any(
            4 <= count(folder) < rounds - 2 for folder in cells(root) if status(folder) == "running"
        )

    until(half_way, process)
    family = children(process.pid)
    assert len(family) == 1, "one job is one process"
    for pid in (process.pid, *family):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    until(lambda: not any(map(alive, family)))

    done = finished(root)
    begun = {folder: newest(folder / "checkpoints") for folder in cells(root) if folder not in done}
    assert 11 <= len(done) < 24
    assert len(begun) == 1 and {status(folder) for folder in begun} == {"running"}
    assert all(path is not None for path in begun.values()), "it has to go on from somewhere"
    kept = sum(int(path.name) for path in begun.values() if path is not None)
    before, exchanges = stamps(done), applied(counted)

    process = begin("sweep", config)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"24 cells, {len(done)} finished already" in out
    assert len(finished(root)) == len(cells(root)) == 24
    assert stamps(done) == before, "a finished cell was written to"
    assert applied(counted) - exchanges == (24 - len(done)) * rounds - kept, "exchanges were repeated"
    for folder in cells(root):
        lines = [json.loads(line)["exchange"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(rounds))
    for folder in begun:
        library.run(folder / "config.toml", out=tmp_path / "whole" / folder.name)
        same(tmp_path / "whole" / folder.name, folder)


def test_a_process_whose_sweep_was_killed_stops_its_cell(
    small: Small, write: Write, begin: Start, counted: Path, tmp_path: Path
) -> None:
    config = write(swept(small, {"rule": counting("mean", "median")}, {"run.rounds": 5000}, out=str(tmp_path / "out")))
    process = begin("sweep", config)
    until(lambda: any(count(folder) > 1 for folder in cells(tmp_path / "out")), process)
    family = children(process.pid)
    process.kill()
    process.communicate()
    assert len(family) == 1
    until(lambda: not any(map(alive, family)), seconds=60)
    (folder,) = cells(tmp_path / "out")
    checkpoint = newest(folder / "checkpoints")
    assert status(folder) == "interrupted" and checkpoint is not None and int(checkpoint.name) == count(folder)


def test_ctrl_c_stops_after_the_exchange_in_hand(
    small: Small, write: Write, begin: Start, counted: Path, tmp_path: Path
) -> None:
    axes = {"rule": counting("mean", "median", "first")}
    config = write(swept(small, axes, {"run.rounds": 5000, "executor": "serial"}, out=str(tmp_path / "out")))
    process = begin("sweep", config, "--jobs", 2)
    root = tmp_path / "out"
    until(lambda: len([folder for folder in cells(root) if count(folder) > 1]) == 2, process)
    family = children(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after the exchange in hand" in out and "run the same command again" in out
    assert "Traceback" not in err + (root / "workers.log").read_text()
    assert not any(map(alive, family)) and len(family) == 2
    assert sorted(states(root).values()) == ["interrupted", "interrupted", "waiting"]
    for folder in cells(root):
        checkpoint = newest(folder / "checkpoints")
        assert checkpoint is not None and int(checkpoint.name) == count(folder)
    assert (root / "sweep.html").exists()


def test_what_is_refused_or_fails_is_recorded_and_the_others_finish(
    fedopt: Command, small: Small, write: Write, counted: Path, tmp_path: Path
) -> None:
    rules = {
        "breaks": {"aggregator": "counted:breaks"},
        "krum": {"aggregator": {"name": "krum", "f": 3}},
        "dies": {"aggregator": "counted:dies"},
        "mean": {"aggregator": "mean"},
    }
    config = write(swept(small, {"rule": rules}, out=str(tmp_path / "out")))
    ran = fedopt("sweep", config)
    assert ran.status == 1
    root = tmp_path / "out"
    expected = {"breaks": "failed", "krum": "refused", "dies": "failed", "mean": "finished"}
    assert states(root) == expected
    said = {cell["settings"]["rule"]: cell["message"] for cell in table_of(root)["cells"]}
    assert "ended with signal SIGKILL" in said["dies"] and "workers.log" in said["dies"]
    assert said["breaks"].startswith("exchange 0: ") and said["breaks"].endswith("out of rope")
    assert said["krum"].startswith("aggregator: ") and "8" in said["krum"] and said["mean"] == ""
    assert "out of rope" in (root / "workers.log").read_text(), "with its traceback"
    assert "refused: aggregator: " in ran.out and "2 failed, 1 finished, 1 refused" in ran.out
    assert ran.out.count("out of rope") >= 2, "when it fails, and at the end"

    # to look at it runs nothing
    kept = {path: path.stat().st_mtime_ns for path in root.glob("cells/*/*")}
    shown = fedopt("sweep", config, "--table")
    assert shown.status == 0 and "refused" in shown.out and "failed" in shown.out and "mean rank" in shown.out
    assert states(root) == expected, "although the folder of the one that died does not say so"
    assert kept == {path: path.stat().st_mtime_ns for path in root.glob("cells/*/*")}
    # what came to nothing is tried again
    plan = read(config)
    tried = [cell.settings["rule"] for cell in Ledger(plan, known=False).unfinished()]
    assert tried == ["breaks", "krum", "dies"]


def test_the_results_are_what_the_cells_came_to(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    attacks = {"none": {"attack": []}, "flip": {"attack": [{"name": "sign_flip", "scale": 4.0}]}}
    shares = {"little": {"attack.*.share": 0.125}, "much": {"attack.*.share": 0.25}}
    document = swept(
        small, {"rule": RULES, "attack": attacks, "share": shares}, seeds=[1, 2], reports=True, at="best", name="four"
    )
    config = write(document)
    ran = fedopt("sweep", config, "--out", tmp_path / "out", "--jobs", 2)
    assert ran.status == 0, ran.err
    root = tmp_path / "out"
    assert len(cells(root)) == 2 * 2 * 3, "without an attack its share makes no difference"
    plan = read(config, out=root)
    with (root / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(plan.cells) == 16
    for row, cell in zip(rows, plan.cells, strict=True):
        lines = [json.loads(line) for line in (root / "cells" / cell.key / "metrics.jsonl").read_text().splitlines()]
        assert [row[axis] for axis in ("rule", "attack", "share")] == list(cell.settings.values())
        assert (row["seed"], row["state"]) == (str(cell.seed), "finished")
        assert float(row["accuracy"]) == max(line["accuracy"] for line in lines)
        assert (root / row["folder"] / "report.html").exists()
        assert (root / row["folder"] / "metrics.jsonl").exists()
    assert f"report: {root / 'sweep.html'}" in ran.out and "12 finished" in ran.out
    assert "share = much" in ran.out and "no attack" in ran.out and "worst" in ran.out

    # reports that are gone are written again, by looking alone
    (root / "sweep.html").unlink()
    gone = root / rows[0]["folder"] / "report.html"
    gone.unlink()
    shown = fedopt("sweep", config, "--out", root, "--report")
    assert shown.status == 0 and gone.exists() and (root / "sweep.html").exists() and "mean rank" not in shown.out


def test_cells_are_found_again_by_their_hash(
    fedopt: Command, small: Small, write: Write, counted: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    one = write(swept(small, {"rule": counting("mean", "median")}), "one.toml")
    two = write(swept(small, {"method": counting("median", "first")}, {"run.name": "other"}), "two.toml")
    for cell in read(one, cache=cache).cells:
        assert work(cell.config, cell.key, cache / cell.key).state == "finished"
    assert applied(counted) == 4
    ran = fedopt("sweep", two, "--cache", cache)
    assert ran.status == 0 and "2 cells, 1 finished already" in ran.out
    assert applied(counted) == 6 and len(cells(cache)) == 3
    assert table_of(tmp_path / "runs" / "two")["cells"][0]["folder"].startswith("../../cache/")
    # another base is another experiment, and the first is not forgotten
    changed = read(one, ["optimizer.lr=0.2"], cache=cache)
    assert len(Ledger(changed).unfinished()) == 2
    again = fedopt("sweep", one, "--cache", cache)
    assert again.status == 0 and "2 finished" in again.out and applied(counted) == 6


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(
    small: Small, write: Write, begin: Start, counted: Path, tmp_path: Path
) -> None:
    axes = {"rule": counting("mean", "median", "first"), "split": SPLITS}
    config = write(swept(small, axes, {"run.rounds": 30, "executor": "serial"}, out=str(tmp_path / "out")))
    both = [begin("sweep", config, "-q") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(finished(tmp_path / "out")) == 6
    assert applied(counted) == 6 * 30, "a cell was run twice"
    assert set(states(tmp_path / "out").values()) == {"finished"}


CONFIG = Path(__file__).resolve().parents[2] / "configs" / "robustness-small.toml"


def test_the_sweep_of_the_repository_is_sound() -> None:
    plan = read(CONFIG)
    assert (len(plan.cells), len(plan.runs)) == (64, 60)
    for cell in plan.cells:
        rule, options = cell.config.aggregator.name, cell.config.aggregator.options  # type: ignore[union-attr]
        attackers = sum(round(20 * (attack.share or 0)) for attack in cell.config.attack)
        assert rule == cell.settings["rule"] and len(cell.config.attack) == (cell.settings["attack"] != "none")
        assert options.get("f", 8) >= attackers


@pytest.mark.slow
def test_the_sweep_of_the_repository_shows_what_rules_are_for(tmp_path: Path) -> None:
    plan = read(CONFIG, out=tmp_path / "out")
    ledger, _ = run(plan, jobs=2)
    assert ledger.counts() == {"finished": 60}
    found = results_of(tmp_path / "out")
    worst = {
        (row, panel.title): found.worst(group for (r, _), group in panel.cells.items() if r == row)
        for panel in found.panels
        for row in found.rows
    }
    means = {key: w.group.mean for key, w in worst.items() if w is not None and w.group.mean is not None}
    assert len(means) == 16
    for share in ("1/5", "2/5"):
        assert means["mean", f"share = {share}, split = iid"] < 0.5
        assert means["krum", f"share = {share}, split = iid"] > 0.8
    assert (tmp_path / "out" / "sweep.html").exists() and not list(tmp_path.glob("out/cells/*/report.html"))


# one cell


@pytest.fixture
def cell(small: Small, write: Write, tmp_path: Path) -> Iterator[tuple[grid.Cell, Path]]:
    """A cell and its folder."""
    plan = read(write(swept(small, {"rule": RULES}, {"run.rounds": 3})), out=tmp_path / "out")
    yield plan.cells[0], plan.folder / plan.cells[0].key


def test_a_cell_that_another_process_runs_is_left_alone(cell: tuple[grid.Cell, Path]) -> None:
    one, folder = cell
    folder.mkdir(parents=True)
    with FileLock(folder / LOCK):
        assert look(folder, one.key).state == "running"
        assert work(one.config, one.key, folder).state == "elsewhere"
    assert look(folder, one.key).state == "waiting"
    assert work(one.config, one.key, folder).state == "finished"
    before = stamps([folder])
    assert work(one.config, one.key, folder).state == "finished" and stamps([folder]) == before


def test_a_folder_that_was_changed_by_hand_is_not_passed_off_as_the_cell(cell: tuple[grid.Cell, Path]) -> None:
    one, folder = cell
    assert work(one.config, one.key, folder).state == "finished"
    library.resume_run(folder, ["run.rounds=4"])
    for outcome in (look(folder, one.key), work(one.config, one.key, folder)):
        assert outcome.state == "failed" and "holds another experiment than its name says" in outcome.message


def test_a_killed_start_can_begin_again(cell: tuple[grid.Cell, Path]) -> None:
    one, folder = cell
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")  # before its config
    assert look(folder, one.key).state == "waiting"
    assert work(one.config, one.key, folder).state == "finished"


def test_a_run_without_the_measure_has_no_value(small: Small, write: Write, tmp_path: Path) -> None:
    strategies = {"fedavg": {"strategy": "fedavg"}, "local_only": {"strategy": "local_only"}}
    plan = read(write(swept(small, {"strategy": strategies})), out=tmp_path / "out")
    before = Ledger(plan)
    assert before.counts() == {"waiting": 2} and len(before.unfinished()) == 2
    for one in plan.cells:
        assert work(one.config, one.key, plan.folder / one.key, report=False).state == "finished"
    ledger = results(plan)
    keys = [one.key for one in plan.cells]
    assert ledger.counts() == {"finished": 2} and ledger.unfinished() == []
    assert ledger.value(keys[0]) is not None and ledger.value(keys[1]) is None
    assert ledger.message(keys[1]) == "accuracy was not measured"
    assert table_of(plan.out) == ledger.document() == Ledger(plan).document()


# the view


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_view_tells_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = SweepView("four", 1, 4, 300, Console(width=80, force_terminal=False), clock)
    with view:
        view.begin(0, "krum · ipm", 100)
        assert view.time_left() is None
        view.advance(0, 51)  # it was resumed after 50 rounds
        clock.now = 10.0
        view.advance(0, 60)
        # 10 rounds in 10 seconds; 40 of this cell and 200 of the others are left
        assert view.time_left() == pytest.approx(240.0)
        view.end(0, "finished", "accuracy 91.20 %, 3.00 s")
        assert view.time_left() == pytest.approx(40.0)  # 50 rounds in 10 seconds
        view.begin(0, "krum · [b]alie[/b]", 100)
        view.end(0, "refused", "refused: too few")
        assert view.time_left() == pytest.approx(20.0)
        text = Console(width=80, record=True, force_terminal=True, file=open(os.devnull, "w"))  # noqa: SIM115
        text.print(view.render())
        text.file.close()
    shown = text.export_text()
    assert "3 of 4 cells" in shown and "1 refused" in shown
    assert capsys.readouterr().out.splitlines() == [
        "four: 4 cells, 1 finished already",
        "2/4  krum · ipm: accuracy 91.20 %, 3.00 s, 40.0 s left",
        "3/4  krum · [b]alie[/b]: refused: too few, 20.0 s left",
    ]
