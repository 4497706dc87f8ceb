"""Checkpoints give back what was put in, and only that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from fedopt.engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest, save_checkpoint


class Inner(NamedTuple):
    values: list[Any]
    table: dict[str, Any]


class Outer(NamedTuple):
    round: int
    inner: Inner
    pair: tuple[Any, ...]


def state() -> Outer:
    shared = torch.arange(4.0)
    return Outer(
        7,
        Inner([1.5, None, "word", True], {"a": shared, "b": shared[1:3], "nested": {"c": torch.tensor(3)}}),
        (torch.zeros(0, 2, dtype=torch.float64), (), [], -1e300, 0.1 + 0.2),
    )


def test_round_trip(tmp_path: Path) -> None:
    memory = {"clients": torch.tensor([2, 9]), "row.m": torch.randn(2, 3)}
    save_checkpoint(tmp_path, Checkpoint(12, state(), memory, {"note": [1, 2]}))
    found = newest(tmp_path)
    assert found is not None and found.name == "00000012"
    back = load_checkpoint(found)
    assert back.exchanges == 12 and back.run == {"note": [1, 2]}
    assert type(back.state) is Outer and type(back.state.inner) is Inner
    wanted, tree = pytree.tree_flatten(state())
    leaves, same = pytree.tree_flatten(back.state)
    assert tree == same
    for a, b in zip(leaves, wanted, strict=True):
        if isinstance(b, torch.Tensor):
            assert torch.equal(a, b) and a.dtype == b.dtype
        else:
            assert a == b and type(a) is type(b)
    assert torch.equal(back.memory["row.m"], memory["row.m"])


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, Checkpoint(3, state(), {"clients": torch.tensor([1])}, {}))
    for file in sorted((tmp_path / "a" / "00000003").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / "00000003" / file.name).read_bytes()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in (1, 5, 10, 11):
        save_checkpoint(tmp_path, Checkpoint(number, state(), {}, {}), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000010", "00000011"]
    assert newest(tmp_path, at_most=10) == tmp_path / "00000010"
    assert newest(tmp_path, at_most=9) is None


def test_a_draft_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Checkpoint(1, state(), {}, {}))
    (tmp_path / ".00000002.draft").mkdir()
    (tmp_path / "00000003").mkdir()
    assert newest(tmp_path) == tmp_path / "00000001"


def test_a_state_with_foreign_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a state may hold tensors, numbers"):
        save_checkpoint(tmp_path, Checkpoint(1, {"x": object()}, {}, {}))


@pytest.mark.parametrize("record", ["os:system", "builtins:dict", "nowhere:Thing", "fedopt.types:Strategy"])
def test_reading_builds_named_tuples_and_nothing_else(tmp_path: Path, record: str) -> None:
    path = save_checkpoint(tmp_path, Checkpoint(1, state(), {}, {}))
    document = json.loads((path / "state.json").read_text())
    document["state"]["record"] = record
    (path / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="is no NamedTuple of this experiment"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["state.safetensors", "memory.safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    memory = {"clients": torch.tensor([2, 9]), "row.m": torch.randn(2, 3)}
    path = save_checkpoint(tmp_path, Checkpoint(1, state(), memory, {}))
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        load_checkpoint(path)
