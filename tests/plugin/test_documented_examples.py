"""The examples of docs/plugins.md work as they stand, in files outside of the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files: each Python block says its name in its first line; the sections of TOML are one config."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
    config = """
    [run]
    rounds = 2
    [data]
    clients = 10
    [optimizer]
    name = "sgd"
    lr = 0.1
    """
    for kind, text in blocks:
        if kind == "python":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        if kind == "toml":
            config += text
    (tmp_path / "experiment.toml").write_text(config, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def test_the_laws_hold(folder: Path) -> None:
    found = run(folder, "-m", "pytest", "-q", "test_mine.py", "-p", "no:cacheprovider")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "2 passed" in found.stdout


def test_a_config_names_them_by_import_path(folder: Path) -> None:
    found = run(folder, "-m", "fedopt", "run", "experiment.toml", "--set", "run.out=out")
    assert found.returncode == 0, found.stdout + found.stderr
    lines = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answered"] for line in lines] == [10, 10]
    wrong = run(folder, "-m", "fedopt", "check", "experiment.toml", "--set", "aggregator.f=10")
    assert wrong.returncode != 0
    assert "n >= f + 1" in wrong.stdout + wrong.stderr


@pytest.mark.parametrize("name", ["my_rules.py", "my_attacks.py"])
def test_they_are_short(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    body = text[text.index("@declare") :]
    assert len(body.strip().splitlines()) <= 20
