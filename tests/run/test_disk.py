"""A full disk: what was written before stays whole, the run says what happened, and can be gone on with."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt.engine import checkpoint as checkpoints
from fedopt.engine.checkpoint import CheckpointError, load_checkpoint, newest
from fedopt.engine.record import RecordError

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]
Record = Callable[[Path], list[dict[str, Any]]]


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: the kernel refuses, in the middle of a write where it must."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def status(folder: Path) -> tuple[str, str]:
    about = json.loads((folder / "run.json").read_text())
    return about["status"], about["reason"]


def test_a_checkpoint_that_does_not_fit_is_a_warning_while_the_run_goes_on(
    small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    document = small()
    fedopt.run(document, out=tmp_path / "whole")
    folder = tmp_path / "part"
    seen: list[Path | None] = []

    def callback(line: dict[str, Any]) -> None:
        if line["exchange"] == 3:  # between the checkpoints after 3 and after 6 exchanges
            monkeypatch.setattr(checkpoints, "_write", full)
        if line["exchange"] == 6:
            monkeypatch.undo()
            seen.append(newest(folder / "checkpoints"))
            assert load_checkpoint(folder / "checkpoints" / "00000003").exchanges == 3

    result = fedopt.run(document, out=folder, callbacks=[callback])
    assert result.status == "finished"
    assert [path.name for path in seen if path] == ["00000003"]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    for words in ("00000006", "No space left on device", "after exchange 3 is untouched", "the run goes on"):
        assert words in warning
    same(tmp_path / "whole", folder)


def test_the_final_checkpoint_that_does_not_fit_is_an_error(
    small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = small({"run.rounds": 5})
    fedopt.run(document, out=tmp_path / "whole")
    with monkeypatch.context() as patch:

        def callback(line: dict[str, Any]) -> None:
            if line["exchange"] == 4:
                patch.setattr(checkpoints, "_write", full)

        with pytest.raises(CheckpointError) as error:
            fedopt.run(document, out=tmp_path / "part", callbacks=[callback])
    assert "00000005" in str(error.value) and "after exchange 3 is untouched" in str(error.value)
    assert status(tmp_path / "part")[0] == "failed" and "No space left" in status(tmp_path / "part")[1]
    assert [path.name for path in (tmp_path / "part" / "checkpoints").iterdir()] == ["00000003"]
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_files_that_the_kernel_cuts_short(small: Small, same: Same, tmp_path: Path) -> None:
    """The memory of SCAFFOLD outgrows the limit first, then the record does."""
    document = small({"strategy.name": "scaffold", "run.rounds": 40, "run.checkpoint_every": 1})
    fedopt.run(document, out=tmp_path / "whole")
    folder = tmp_path / "part"
    with files_up_to(18_000), pytest.raises(RecordError) as error:
        fedopt.run(document, out=folder)
    assert "metrics.jsonl cannot be written" in str(error.value) and "fedopt resume" in str(error.value)
    assert status(folder)[0] == "failed"
    content = (folder / "metrics.jsonl").read_bytes()
    assert content.endswith(b"}\n") and 15_000 < len(content) <= 18_000
    done = content.count(b"\n")
    last = newest(folder / "checkpoints")
    assert last is not None and load_checkpoint(last).exchanges < done, "the one with more memory should not fit"
    assert {path.name[0] for path in (folder / "checkpoints").iterdir()} == {"0"}, "drafts are left"
    fedopt.resume_run(folder)
    same(tmp_path / "whole", folder)


def test_a_disk_that_fails_altogether_does_not_hide_what_went_wrong_first(
    small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = small({"run.checkpoint_every": 2})
    fedopt.run(document, out=tmp_path / "whole")
    with monkeypatch.context() as patch:

        def callback(line: dict[str, Any]) -> None:
            if line["exchange"] == 4:
                patch.setattr(os, "fsync", full)
                raise OverflowError("mine")

        with pytest.raises(OverflowError, match="mine"):
            fedopt.run(document, out=tmp_path / "part", callbacks=[callback])
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_no_checkpoint_without_the_line_of_its_exchange(
    small: Small, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a line cannot be written but a checkpoint could, the exchange is repeated by the resumed run."""
    from fedopt.engine.record import Metrics

    document = small({"run.checkpoint_every": 0})
    fedopt.run(document, out=tmp_path / "whole")
    append = Metrics.append

    def fails(self: Metrics, line: dict[str, Any]) -> dict[str, Any]:
        if line["exchange"] == 5:
            raise RecordError("no space")
        return append(self, line)

    with monkeypatch.context() as patch, pytest.raises(RecordError):
        patch.setattr(Metrics, "append", fails)
        fedopt.run(document, out=tmp_path / "part")
    fedopt.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("size, file", [(10, "run"), (1000, "partition")])
def test_a_folder_that_cannot_even_be_begun(size: int, file: str, small: Small, tmp_path: Path) -> None:
    with files_up_to(size), pytest.raises(RecordError, match=rf"{file}\.json cannot be written .*; free some space"):
        fedopt.run(small(), out=tmp_path)
    assert [path.name for path in tmp_path.glob(".*")] in ([], [".lock"])


def test_an_older_run_json_stays_when_the_new_one_does_not_fit(small: Small, tmp_path: Path) -> None:
    from fedopt.engine.record import write_json

    fedopt.run(small({"run.rounds": 1}), out=tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with files_up_to(100), pytest.raises(RecordError):
        write_json(tmp_path / "run.json", {"status": "x" * 1000})
    assert (tmp_path / "run.json").read_bytes() == before


def test_the_command_line_keeps_to_the_reason(
    small: Small, fedopt: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    """The report does not fit either, but that is not what went wrong."""
    config = write(small({"run.rounds": 60, "run.out": str(tmp_path / "run")}))
    with files_up_to(14_000):
        ran = fedopt("run", config, "--quiet")
    assert ran.status == 2
    assert ran.err.count("error") == 1 and "metrics.jsonl cannot be written" in ran.err
    assert "Traceback" not in ran.err


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, where this process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True)
    except OSError as error:
        pytest.skip(f"needs to mount a tmpfs: {error}")
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_file_system_that_fills_up(small: Small, tmpfs: Path, tmp_path: Path, same: Same) -> None:
    document = small({"strategy.name": "scaffold", "run.rounds": 8, "run.checkpoint_every": 2})
    fedopt.run(document, out=tmp_path / "whole")
    folder, ballast = tmpfs / "run", tmpfs / "ballast"

    def callback(line: dict[str, Any]) -> None:
        if line["exchange"] == 4:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass

    with pytest.raises(fedopt.FedoptError, match="No space left on device"):
        fedopt.run(document, out=folder, callbacks=[callback])
    last = newest(folder / "checkpoints")
    assert last is not None and load_checkpoint(last).exchanges == 4
    ballast.unlink()
    fedopt.resume_run(folder)
    same(tmp_path / "whole", folder)
