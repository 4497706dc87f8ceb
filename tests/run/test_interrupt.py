"""SIGTERM and Ctrl-C let the exchange in hand finish; what was done is kept and can be gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedopt

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def signal_in(exchange: int, *numbers: int) -> Callable[[dict[str, Any]], None]:
    """A callback that sends signals to this process while that exchange is being recorded."""

    def callback(line: dict[str, Any]) -> None:
        if line["exchange"] == exchange:
            for number in numbers:
                os.kill(os.getpid(), number)

    return callback


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exchange_in_hand_is_finished(number: int, small: Small, same: Same, tmp_path: Path) -> None:
    document = small({"strategy.name": "scaffold"})
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    fedopt.run(document, out=tmp_path / "whole")
    result = fedopt.run(document, out=tmp_path / "part", callbacks=[signal_in(4, number)])
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert (result.status, len(result.history)) == ("interrupted", 5)
    assert about(tmp_path / "part")["status"] == "interrupted"
    assert "fedopt resume" in about(tmp_path / "part")["reason"]
    assert (tmp_path / "part" / "checkpoints" / "00000005").is_dir()
    assert fedopt.resume_run(tmp_path / "part").status == "finished"
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_second_ctrl_c_stops_at_once(strategy: str, small: Small, same: Same, tmp_path: Path) -> None:
    document = small({"strategy.name": strategy})
    fedopt.run(document, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedopt.run(document, out=tmp_path / "part", callbacks=[signal_in(4, signal.SIGINT, signal.SIGINT)])
    assert about(tmp_path / "part")["status"] == "interrupted"
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
@pytest.mark.parametrize("stage", ["evaluation", "commit"])
def test_interrupted_between_the_state_and_its_record(
    strategy: str, stage: str, small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange of which a part is done leaves no checkpoint: it would be missing in the record, or be done twice."""
    from fedopt.engine import evaluate
    from fedopt.engine.memory import ClientMemory

    document = small({"strategy.name": strategy, "run.checkpoint_every": 2})
    fedopt.run(document, out=tmp_path / "whole")
    owner, name = (evaluate, "on_server") if stage == "evaluation" else (ClientMemory, "commit")
    real, calls = getattr(owner, name), 0

    def breaks(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*arguments)
        if calls == 4:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        with pytest.raises(KeyboardInterrupt):
            fedopt.run(document, out=tmp_path / "part")
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_signals_are_left_alone_outside_of_the_main_thread(small: Small, tmp_path: Path) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(fedopt.run(small({"run.rounds": 1}), out=tmp_path).status))
    thread.start()
    thread.join()
    assert found == ["finished"]


def test_the_command_line_says_so_and_does_not_go_on_with_a_sweep(
    small: Small, start: Callable[..., subprocess.Popen[str]], write: Callable[..., Path], tmp_path: Path
) -> None:
    config = write(small({"run.rounds": 5000, "run.out": str(tmp_path / "sweep")}))
    process = start("run", config, "--sweep", "optimizer.lr=0.1,0.2", "--quiet")
    first = tmp_path / "sweep" / "optimizer.lr=0.1"
    while not (first / "metrics.jsonl").exists() or not (first / "metrics.jsonl").read_bytes():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: by the user; continue with 'fedopt resume'" in out
    assert about(first)["status"] == "interrupted" and (first / "report.html").exists()
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["optimizer.lr=0.1"]
