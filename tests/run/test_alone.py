"""Two processes never write one run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import fedopt
from fedopt import ConfigError

Small = Callable[..., dict[str, Any]]


def test_a_folder_in_use_is_refused(small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 2}), out=tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with FileLock(tmp_path / "run" / ".lock"):
        with pytest.raises(ConfigError, match=r"run\.out: another process is running in .*run"):
            fedopt.resume_run(tmp_path / "run", ["run.rounds=3"])
        assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert len(fedopt.resume_run(tmp_path / "run", ["run.rounds=3"]).history) == 3


def test_a_callback_cannot_resume_its_own_run(small: Small, tmp_path: Path) -> None:
    def again(line: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="another process"):
            fedopt.resume_run(tmp_path / "run")

    fedopt.run(small({"run.rounds": 1}), out=tmp_path / "run", callbacks=[again])
