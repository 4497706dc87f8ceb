"""SIGKILL at any moment, then `fedopt resume`: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt.engine import memory

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]
Start = Callable[..., "subprocess.Popen[str]"]
Write = Callable[..., Path]

METHODS: dict[str, dict[str, Any]] = {
    "fedavg-adam": {"strategy.server": {"name": "adam", "lr": 0.01}},
    "scaffold": {"strategy.name": "scaffold"},
    "kept-momentum": {"strategy.optimizer_state": "kept", "optimizer.momentum": 0.9},
    "ditto": {"strategy.name": "ditto", "strategy.lam": 0.5},
}
# long enough that a process can be caught between any two exchanges
LONG = {"run.rounds": 12, "strategy.steps": 8, "data.partition": {"name": "iid"}, "executor": "serial"}


def count(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process: subprocess.Popen[str], folder: Path, exchanges: int) -> None:
    """SIGKILL as soon as so many exchanges are recorded."""
    deadline = time.monotonic() + 120
    while count(folder) < exchanges:
        assert process.poll() is None, f"ended too early:\n{process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was through before it could be killed"


def killed_and_resumed(document: dict[str, Any], kills: list[int], folder: Path, start: Start, write: Write) -> None:
    process = start("run", write(document), "--set", f"run.out={folder}", "--quiet")
    for exchanges in kills:
        kill_after(process, folder, exchanges)
        assert '"running"' in (folder / "run.json").read_text()
        process = start("resume", folder, "--quiet")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "finished: all rounds done" in out
    assert '"finished"' in (folder / "run.json").read_text()


@pytest.mark.parametrize(
    "method", ["scaffold", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "scaffold")]
)
def test_killed_once(method: str, small: Small, same: Same, start: Start, write: Write, tmp_path: Path) -> None:
    document = small({**LONG, **METHODS[method]})
    moment = random.Random(method).randint(4, 9)
    killed_and_resumed(document, [moment], tmp_path / "killed", start, write)
    fedopt.run(document, out=tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_killed_three_times_the_first_before_a_checkpoint(
    method: str, seed: int, small: Small, same: Same, start: Start, write: Write, tmp_path: Path
) -> None:
    document = small({**LONG, **METHODS[method], "run.seed": seed})
    moments = [1, *sorted(random.Random(f"{method} {seed}").sample(range(2, 10), 2))]
    killed_and_resumed(document, moments, tmp_path / "killed", start, write)
    fedopt.run(document, out=tmp_path / "whole")
    same(tmp_path / "whole", tmp_path / "killed")


# Kills at exact moments: a forked copy of this process ends itself right before its n-th change to the run folder.

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def kill_at(work: Callable[[], object], folder: Path, moment: int) -> int:
    """Do `work` in a fork that is killed at the `moment`-th change to `folder`; how many there were, if it was not.

    A flush to disk counts as a change. A draft that is being flushed is cut in half first, as a loss of power may do.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            seen = 0

            def change() -> bool:
                nonlocal seen
                seen += 1
                return seen == moment

            def watch(event: str, arguments: tuple[Any, ...]) -> None:
                if event not in CHANGES or (event == "open" and not int(arguments[2]) & (os.O_WRONLY | os.O_RDWR)):
                    return
                path = str(arguments[0])
                if (path.startswith(str(folder)) or not os.path.isabs(path)) and change():
                    os.kill(os.getpid(), signal.SIGKILL)

            def flush(handle: int) -> None:
                if change():
                    path = Path(f"/proc/self/fd/{handle}").resolve()
                    if ".draft" in str(path) and path.is_file():
                        os.truncate(handle, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)

            os.fsync = flush  # type: ignore[assignment]
            sys.addaudithook(watch)
            work()
            os.write(writing, str(seen).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    assert bool(told) != (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), "it failed by itself"
    return int(told or 0)


TINY = {
    "run": {"rounds": 4, "checkpoint_every": 2, "keep_checkpoints": 1},
    "data.clients": 5,
    "data.valid_share": 0.0,
    "data.partition": {"name": "iid"},
    "model.hidden": [4],
    "strategy.name": "scaffold",
}


def kill_everywhere(document: dict[str, Any], moments: list[int], same: Same, tmp_path: Path) -> None:
    """Kill a run at each moment, its continuation somewhere as well, and see that the third attempt gets it right."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    fedopt.run(document, out=whole)
    for moment in moments:
        shutil.rmtree(folder, ignore_errors=True)
        # a flush that is due once a second may be missing, and the last moment never come
        changes = kill_at(lambda: fedopt.run(document, out=folder), folder, moment)
        assert not changes or changes == moment - 1
        if (folder / "config.toml").exists():
            kill_at(lambda: fedopt.resume_run(folder), folder, random.Random(moment).randint(1, 60))
            fedopt.resume_run(folder)
        else:  # it had hardly begun, and can begin again
            fedopt.run(document, out=folder)
        same(whole, folder)
        assert not list(folder.rglob(".*.draft*")) and not list(folder.rglob(".*.old")), "litter"


def moments_of(document: dict[str, Any], tmp_path: Path) -> int:
    folder = tmp_path / "counted"
    return kill_at(lambda: fedopt.run(document, out=folder), folder, -1)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories count as large, and a piece holds a few clients."""
    monkeypatch.setattr(memory, "WHOLE", 1)
    monkeypatch.setattr(memory, "PIECE", 2_500)


# five clients of which two change at a time, so that a checkpoint writes some of the rows
PIECES = {**TINY, "run.checkpoint_every": 1, "run.rounds": 5, "participation.count": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("in_pieces")
def test_a_memory_in_pieces_killed_at_some_changes(small: Small, same: Same, tmp_path: Path) -> None:
    document = small(PIECES)
    moments = moments_of(document, tmp_path)
    assert list((tmp_path / "counted" / "checkpoints" / "memory").iterdir())
    kill_everywhere(document, random.Random(6).sample(range(1, moments + 1), 8), same, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("keep", [1, 2])
def test_a_memory_in_pieces_killed_at_every_change(keep: int, small: Small, same: Same, tmp_path: Path) -> None:
    document = small({**PIECES, "run.keep_checkpoints": keep})
    kill_everywhere(document, list(range(1, moments_of(document, tmp_path) + 1)), same, tmp_path)


def test_killed_at_some_changes_of_the_run_folder(small: Small, same: Same, tmp_path: Path) -> None:
    document = small(TINY)
    moments = moments_of(document, tmp_path)
    assert moments > 50
    kill_everywhere(document, random.Random(5).sample(range(1, moments + 1), 5), same, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_at_every_change_of_the_run_folder(keep: int, small: Small, same: Same, tmp_path: Path) -> None:
    document = small({**TINY, "run.keep_checkpoints": keep})
    kill_everywhere(document, list(range(1, moments_of(document, tmp_path) + 1)), same, tmp_path)
