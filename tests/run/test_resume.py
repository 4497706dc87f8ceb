"""A run that is stopped and resumed in the same process is the run that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt import config as configs
from fedopt import strategies
from fedopt.engine import memory
from fedopt.engine.checkpoint import load_checkpoint, newest
from fedopt.registry import ConfigError, facts, parameters
from fedopt.testing.strategies import horizontal
from tests.families import few

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]
Record = Callable[[Path], list[dict[str, Any]]]


def stop_after(exchanges: int) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["exchange"] + 1 >= exchanges


def for_strategy(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The small experiment with another strategy, and the sections that this one has a use for."""
    component = strategies.registry.get(name)
    wants = strategies.registry.wants(name)
    walk = document.pop("strategy") if "batches" in wants else {}
    options = next(iter(facts(component).get("examples", ({},))))
    document["strategy"] = {**walk, **options, "name": name}
    document["data"]["trial_samples"] = 40
    for section in ("participation", "optimizer"):
        if section not in wants:
            document.pop(section)
    if "optimizer" in wants:
        document["optimizer"] = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    if "server" in wants:
        document["strategy"]["server"] = {"name": "adam", "lr": 0.01}
    if "optimizer_state" in parameters(component):
        document["strategy"]["optimizer_state"] = "kept"
    return document


@pytest.mark.parametrize("name", few(horizontal()))
@pytest.mark.parametrize("stopped", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_stopped_and_resumed_equals_uninterrupted(
    name: str, stopped: int, small: Small, same: Same, tmp_path: Path
) -> None:
    document = for_strategy(small(), name)
    whole = fedopt.run(document, out=tmp_path / "whole")
    part = fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(stopped)])
    assert (part.status, part.reason, len(part.history)) == ("stopped", "a callback asked to stop", stopped)
    resumed = fedopt.resume_run(tmp_path / "part")
    assert (whole.status, whole.reason) == (resumed.status, resumed.reason) == ("finished", "all rounds done")
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize(
    "changes",
    [
        {"executor": "serial"},
        {"run.dtype": "float64", "strategy.server": {"name": "yogi", "lr": 0.01}},
        {"model": {"name": "resnet18", "width": 2, "norm": "batch"}, "strategy.steps": 1, "run.rounds": 3},
        {"aggregator": {"name": "trimmed_mean", "f": 1}, "attack": [{"name": "alie", "count": 2}]},
        {"optimizer": {"name": "adam", "lr": {"schedule": "cosine", "start": 0.05, "rounds": 9}}},
    ],
    ids=["serial", "float64", "buffers", "attack", "schedule"],
)
def test_what_else_the_next_exchange_depends_on_is_in_the_checkpoint(
    changes: dict[str, Any], small: Small, same: Same, tmp_path: Path
) -> None:
    document = small(changes)
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(2)])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_resuming_again_and_again(small: Small, same: Same, tmp_path: Path) -> None:
    document = small({"strategy.name": "scaffold"})
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(1)])
    for exchanges in range(2, 9):
        result = fedopt.resume_run(tmp_path / "part", callbacks=[stop_after(exchanges)])
        assert result.status == "stopped" and len(result.history) == exchanges
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 4])
def test_a_memory_in_pieces(
    stopped: int, small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "WHOLE", 1)
    monkeypatch.setattr(memory, "PIECE", 10_000)
    document = small({"strategy.name": "scaffold", "run.checkpoint_every": 2})
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(stopped)])
    fedopt.resume_run(tmp_path / "part", callbacks=[stop_after(stopped + 2)])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")
    # what was stored whole goes on in pieces, and the other way round
    monkeypatch.setattr(memory, "WHOLE", 1 << 20)
    fedopt.run(document, out=tmp_path / "small")
    fedopt.run(document, out=tmp_path / "grown", callbacks=[stop_after(stopped)])
    monkeypatch.setattr(memory, "WHOLE", 1)
    fedopt.resume_run(tmp_path / "grown")
    same(tmp_path / "whole", tmp_path / "grown")
    fedopt.run(document, out=tmp_path / "shrunk", callbacks=[stop_after(stopped)])
    monkeypatch.setattr(memory, "WHOLE", 1 << 20)
    fedopt.resume_run(tmp_path / "shrunk")
    same(tmp_path / "small", tmp_path / "shrunk")


def test_resuming_a_finished_run_changes_nothing(small: Small, same: Same, tmp_path: Path) -> None:
    document = small({"run.rounds": 2})
    fedopt.run(document, out=tmp_path / "one")
    fedopt.run(document, out=tmp_path / "other")
    result = fedopt.resume_run(tmp_path / "other")
    assert (result.status, len(result.history)) == ("finished", 2)
    same(tmp_path / "one", tmp_path / "other")


def test_more_rounds_extend_a_finished_run(small: Small, same: Same, tmp_path: Path) -> None:
    fedopt.run(small(), out=tmp_path / "whole")
    fedopt.run(small({"run.rounds": 4, "run.evaluate_every": 2}), out=tmp_path / "part")
    changes = ["run.rounds=9", "run.evaluate_every=1", "run.name=longer", "run.stop={patience=50}"]
    result = fedopt.resume_run(tmp_path / "part", changes)
    assert result.status == "finished" and len(result.history) == 9
    ends = [load_checkpoint(newest(tmp_path / name / "checkpoints")) for name in ("whole", "part")]
    assert ends[0].state.model["params"].equal(ends[1].state.model["params"])
    kept = configs.load(tmp_path / "part" / "config.toml").run
    assert (kept.rounds, kept.name) == (9, "longer")


@pytest.mark.parametrize(
    "change, path, old, new",
    [
        ("optimizer.lr=0.2", "optimizer.lr", "0.1", "0.2"),
        ("run.seed=7", "run.seed", "1", "7"),
        ("strategy.name=scaffold", "strategy.name", "'fedavg'", "'scaffold'"),
        ("executor.name=serial", "executor.name", "'stacked'", "'serial'"),
        ("participation.count=3", "participation.count", "4", "3"),
        ("model.hidden=[9]", "model.hidden", "[8]", "[9]"),
        ("run.dtype=float64", "run.dtype", "'float32'", "'float64'"),
    ],
)
@pytest.mark.parametrize("checkpoints", ["with", "without"])
def test_a_change_of_the_numbers_is_refused(
    change: str, path: str, old: str, new: str, checkpoints: str, small: Small, tmp_path: Path
) -> None:
    fedopt.run(small({"run.rounds": 2}), out=tmp_path / "run")
    if checkpoints == "without":  # as a run leaves it that was killed before the first one
        for file in sorted((tmp_path / "run" / "checkpoints").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(ConfigError) as refused:
        fedopt.resume_run(tmp_path / "run", [change])
    assert refused.value.where == path
    message = str(refused.value)
    assert f"started with {old}" in message and f"change it to {new}" in message and "another folder" in message
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"is no run folder: it has no run\.json and config"):
            fedopt.resume_run(folder)
        with pytest.raises(ConfigError, match="is no run folder"):
            fedopt.Experiment(data={"clients": 3}, optimizer={"name": "sgd", "lr": 0.1}).resume(folder)


@pytest.mark.parametrize("file", ["state.json", "state.safetensors", "memory.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "other"])
def test_a_damaged_checkpoint_is_named_and_can_be_stepped_over(
    file: str, damage: str, small: Small, same: Same, tmp_path: Path
) -> None:
    document = small({"strategy.name": "scaffold", "run.rounds": 4, "run.checkpoint_every": 2})
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(3)])
    broken = tmp_path / "part" / "checkpoints" / "00000003" / file
    content = broken.read_bytes()
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"[1, 2, 3]"}[damage])
    if (file, damage) == ("state.json", "missing"):  # it is written last: without it, this is no checkpoint
        fedopt.resume_run(tmp_path / "part")
    else:
        with pytest.raises(fedopt.FedoptError) as refused:
            fedopt.resume_run(tmp_path / "part")
        assert str(broken.parent) in str(refused.value) and "remove it to go on from an older one" in str(refused.value)
        for path in broken.parent.iterdir():
            path.unlink()
        broken.parent.rmdir()
        fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_a_checkpoint_executes_nothing(small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 1}), out=tmp_path)
    document = tmp_path / "checkpoints" / "00000001" / "state.json"
    known = document.read_text()
    assert "fedopt.strategies._server:Server" in known
    document.write_text(known.replace("fedopt.strategies._server:Server", "subprocess:Popen"))
    with pytest.raises(fedopt.FedoptError, match="'subprocess:Popen', which is no NamedTuple of this experiment"):
        fedopt.resume_run(tmp_path)


def test_a_state_of_another_version_is_named_and_left_alone(small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 4}), out=tmp_path, callbacks=[stop_after(2)])
    path = tmp_path / "checkpoints" / "00000002" / "state.json"
    known = json.loads(path.read_text())
    known["state"]["fields"]["participation"] = {"tuple": []}
    path.write_text(json.dumps(known))
    with pytest.raises(fedopt.FedoptError) as refused:
        fedopt.resume_run(tmp_path)
    assert "state.participation is a tuple in it, and Selection was needed" in str(refused.value)
    assert "start a new run in another folder" in str(refused.value)
    assert json.loads(path.read_text()) == known


def test_a_line_cut_by_a_crash_is_written_again(small: Small, same: Same, tmp_path: Path) -> None:
    document = small()
    fedopt.run(document, out=tmp_path / "whole")
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(5)])
    file = tmp_path / "part" / "metrics.jsonl"
    with file.open("a") as stream:  # of exchange 5, which no checkpoint holds, half
        stream.write((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[5][:40])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_a_record_with_a_gap_or_damage_is_refused(small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 3}), out=tmp_path)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for content in ("", lines[0] + lines[2], lines[0] + lines[0] + lines[1] + lines[2]):
        file.write_text(content)
        with pytest.raises(fedopt.FedoptError, match=r"has to record the exchanges 0 to 2.*remove the checkpoints"):
            fedopt.resume_run(tmp_path)
        assert file.read_text() == content
    for wrong in ("{nonsense}\n", "[]\n", "{}\n"):
        file.write_text(lines[0] + wrong + lines[2])
        with pytest.raises(fedopt.FedoptError, match=r"line 2 of .*metrics\.jsonl is damaged .*; delete it"):
            fedopt.resume_run(tmp_path)


@pytest.mark.parametrize(
    "stop", [{"target": 0.5}, {"metric": "loss", "patience": 2, "min_delta": 0.2}, {"metric": "g_mean", "patience": 3}]
)
def test_early_stopping_decides_alike_after_resume(
    stop: dict[str, Any], small: Small, same: Same, tmp_path: Path
) -> None:
    document = small({"run.rounds": 60, "run.stop": stop, "optimizer.lr": 0.3})
    whole = fedopt.run(document, out=tmp_path / "whole")
    assert whole.status == "stopped" and 2 < len(whole.history) < 60
    fedopt.run(document, out=tmp_path / "part", callbacks=[stop_after(len(whole.history) - 1)])
    resumed = fedopt.resume_run(tmp_path / "part")
    assert (resumed.status, resumed.reason) == (whole.status, whole.reason)
    same(tmp_path / "whole", tmp_path / "part")
    again = fedopt.resume_run(tmp_path / "part")
    assert (again.status, again.reason, len(again.history)) == ("stopped", whole.reason, len(whole.history))
