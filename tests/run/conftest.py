"""Small experiments on the digits, a way to run the command line, and what it means that two runs are the same."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tomli_w
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = ("seconds", "elapsed")

SMALL: dict[str, Any] = {
    "run": {"rounds": 9, "checkpoint_every": 3, "evaluate_clients_every": 4},
    "data": {"name": "digits", "clients": 8, "valid_share": 0.2, "partition": {"name": "dirichlet", "alpha": 1.0}},
    "model": {"name": "mlp", "hidden": [8]},
    "strategy": {"name": "fedavg", "batch_size": 16, "steps": 2},
    "participation": {"name": "uniform", "count": 4},
    "optimizer": {"name": "sgd", "lr": 0.1},
}

Small = Callable[..., dict[str, Any]]


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`{"run.rounds": 3}` sets a key, `{"optimizer": None}` removes one."""
    document = copy.deepcopy(dict(document))
    for path, value in changes.items():
        *above, last = path.split(".")
        here = document
        for part in above:
            here = here.setdefault(part, {})
        if value is None:
            del here[last]
        else:
            here[last] = value
    return document


@pytest.fixture
def small() -> Small:
    """A config of nine quick rounds as a dict, with changes by path."""
    return lambda changes=None: changed(SMALL, changes or {})


class Ran(NamedTuple):
    """A finished command."""

    status: int
    out: str
    err: str


@pytest.fixture
def fedopt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`fedopt("run", path, "-q")` in this process, as the console script runs it."""
    from fedopt.cli import main

    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fedopt", *map(str, words)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start("run", path)` is a process of its own with the command in it."""

    def call(*words: object) -> subprocess.Popen[str]:
        code = "from fedopt.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(document, "name.toml")` is the path of a config file."""

    def call(document: Mapping[str, Any], name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(tomli_w.dumps(document))
        return path

    return call


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says, parsed strictly: NaN and Infinity are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {folder}/metrics.jsonl")

    texts = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(text, parse_constant=refuse) for text in texts]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


@pytest.fixture
def record() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a run folder, without what a clock says."""
    return lines_of


def memory_in_pieces(folder: Path, names: list[str]) -> dict[int, list[bytes]]:
    """What each client keeps, of a memory that is stored in pieces; all files of it have to be needed by somebody."""
    found: dict[int, list[bytes]] = {}
    for name in names:
        piece = load_file(folder / "memory" / f"{name}.safetensors")
        for i, client in enumerate(piece.pop("clients").tolist()):
            found[client] = [piece[key][i].numpy().tobytes() for key in sorted(piece)]
    return found


@pytest.fixture
def same() -> Callable[[Path, Path], None]:
    """Asserts that two runs left the same final checkpoint, byte for byte, the same record and the same model.

    How a memory is cut in pieces depends on the checkpoints that were made, so these are compared by what they say.
    """

    def compare(one: Path, other: Path) -> None:
        last = [sorted((folder / "checkpoints").glob("[0-9]*"))[-1] for folder in (one, other)]
        assert last[0].name == last[1].name
        files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in last]
        assert files[0].keys() == files[1].keys() == {"state.json", "state.safetensors", "memory.safetensors"}
        documents = [json.loads(content["state.json"]) for content in files]
        if "pieces" in documents[0]:
            pieces = [document.pop("pieces") for document in documents]
            memories = [memory_in_pieces(last[i].parent, pieces[i]) for i in range(2)]
            assert memories[0] == memories[1] != {}
            assert documents[0] == documents[1]
            for content in files:
                del content["state.json"]
        for folder in (last[0].parent, last[1].parent):
            every = [json.loads(path.read_text()) for path in folder.glob("[0-9]*/state.json")]
            needed = {f"{name}.safetensors" for document in every for name in document.get("pieces", ())}
            assert {path.name for path in (folder / "memory").glob("*")} == needed
        for name in files[0]:
            assert files[0][name] == files[1][name], f"{name} differs"
        lines = lines_of(one)
        assert [line["exchange"] for line in lines] == list(range(len(lines)))
        assert lines == lines_of(other)
        models = [folder / "model.safetensors" for folder in (one, other)]
        assert models[0].exists() == models[1].exists()
        if models[0].exists():
            assert models[0].read_bytes() == models[1].read_bytes()

    return compare
