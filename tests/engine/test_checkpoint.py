"""Checkpoints give back what was put in, and only that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from fedopt.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    Pieces,
    load_checkpoint,
    newest,
    save_checkpoint,
    write_pieces,
)


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


def piece(client: int) -> dict[str, torch.Tensor]:
    return {"clients": torch.tensor([client]), "row.m": torch.full((1, 3), float(client))}


def present(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "memory").iterdir()}


def test_pieces_stay_as_long_as_a_checkpoint_names_them(tmp_path: Path) -> None:
    kept: dict[int, tuple[int, ...]] = {1: (0, 1), 2: (0, 1, 2), 3: (3,), 5: (3, 4, 3)}
    wanted = {1: {0, 1}, 2: {0, 1, 2}, 3: {0, 1, 2, 3}, 5: {3, 4}}
    names: dict[int, str] = {}
    for number, held in kept.items():
        for i, name in zip(held, write_pieces(tmp_path, map(piece, held)), strict=True):
            assert names.setdefault(i, name) == name  # the same content has the same name
        litter = tmp_path / "memory" / ".draft"
        litter.write_bytes(b"of a run that was killed")
        memory = Pieces(tmp_path, tuple(names[i] for i in held))
        save_checkpoint(tmp_path, Checkpoint(number, state(), memory, {}), keep=2)
        assert present(tmp_path) == {names[i] for i in wanted[number]}
    back = load_checkpoint(tmp_path / "00000005")
    assert isinstance(back.memory, Pieces)
    assert [int(found["clients"]) for found in back.memory.read()] == [3, 4, 3]
    save_checkpoint(tmp_path, Checkpoint(6, state(), {}, {}), keep=1)
    assert present(tmp_path) == set()


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_piece_is_noticed(tmp_path: Path, damage: str) -> None:
    name = write_pieces(tmp_path, [piece(1)])[0]
    path = tmp_path / "memory" / f"{name}.safetensors"
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}.*which a checkpoint needs, cannot be read .*an older one"):
        list(Pieces(tmp_path, (name,)).read())


def test_pieces_are_left_alone_where_a_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    (first,) = write_pieces(tmp_path, [piece(1)])
    save_checkpoint(tmp_path, Checkpoint(1, state(), Pieces(tmp_path, (first,)), {}))
    (tmp_path / "00000001" / "state.json").write_text("{")
    (second,) = write_pieces(tmp_path, [piece(2)])
    save_checkpoint(tmp_path, Checkpoint(2, state(), Pieces(tmp_path, (second,)), {}))
    assert present(tmp_path) == {first, second}


def test_a_piece_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file, where the folder should be")
    with pytest.raises(CheckpointError, match="could not write the clients' memory"):
        write_pieces(tmp_path, [piece(1)])
