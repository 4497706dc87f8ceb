"""Client memory against a dict of rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedopt.engine import memory as engine_memory
from fedopt.engine.checkpoint import Checkpoint, CheckpointError, Pieces, load_checkpoint, save_checkpoint
from fedopt.engine.memory import ClientMemory
from fedopt.types import Exchange, FedoptError, Replies

FIRST = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(7, dtype=torch.int64)}


def replies(clients: list[int], memory: dict[str, torch.Tensor]) -> Replies:
    ids = torch.tensor(clients, dtype=torch.int64)
    return Replies(Exchange("train", ids, {}), ids, {}, torch.ones(len(clients)), {}, memory)


@given(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True), max_size=8))
def test_like_a_dict(rounds: list[list[int]]) -> None:
    memory = ClientMemory(FIRST, 20)
    model = {c: (FIRST["a"], FIRST["b"]) for c in range(20)}
    for number, cohort in enumerate(map(sorted, rounds)):
        rows = torch.arange(2.0 * len(cohort)).reshape(-1, 2) + 100 * number
        changed = {"a": rows} if number % 2 else {"a": rows, "b": torch.tensor(cohort) * number}
        memory.commit(replies(cohort, changed))
        for i, client in enumerate(cohort):
            model[client] = (rows[i], model[client][1] if number % 2 else torch.tensor(client * number))
    everybody = memory.of(torch.arange(20))
    copy = ClientMemory(FIRST, 20)
    copy.restore({name: value.clone() for name, value in memory.snapshot().items()})
    for other in (everybody, copy.of(torch.arange(20))):
        for client, (a, b) in model.items():
            assert torch.equal(other["a"][client], a) and int(other["b"][client]) == int(b)


def test_storage_grows_with_those_who_answered() -> None:
    memory = ClientMemory({"a": torch.zeros(1000)}, 1_000_000)
    memory.commit(replies([5, 999_999], {"a": torch.ones(2, 1000)}))
    assert memory.rows["a"].shape[0] < 10
    assert memory.snapshot()["clients"].tolist() == [5, 999_999]


def test_the_snapshot_does_not_depend_on_the_order_of_arrival() -> None:
    one, other = ClientMemory(FIRST, 9), ClientMemory(FIRST, 9)
    for memory, order in ((one, [3, 1, 8]), (other, [8, 3, 1])):
        for client in order:
            memory.commit(replies([client], {"b": torch.tensor([client])}))
    for name, value in one.snapshot().items():
        assert torch.equal(value, other.snapshot()[name])


def test_reading_gives_copies() -> None:
    memory = ClientMemory(FIRST, 3)
    memory.of(torch.tensor([1]))["a"].zero_()
    assert torch.equal(memory.of(torch.tensor([1]))["a"][0], FIRST["a"])


COHORTS = st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6, unique=True), max_size=12)


def play(memory: ClientMemory, cohorts: list[list[int]], start: int = 0) -> None:
    for number, cohort in enumerate(map(sorted, cohorts), start):
        rows = torch.arange(2.0 * len(cohort)).reshape(-1, 2) + 100 * number
        memory.commit(replies(cohort, {"a": rows, "b": torch.tensor(cohort) * number}))


def same_bits(one: ClientMemory, other: ClientMemory, clients: int = 20) -> None:
    everybody = torch.arange(clients)
    for name, rows in one.of(everybody).items():
        assert torch.equal(rows, other.of(everybody)[name])
    assert one.snapshot().keys() == other.snapshot().keys()
    for name, value in one.snapshot().items():
        assert torch.equal(value, other.snapshot()[name])


@given(COHORTS)
def test_a_spilled_memory_has_the_same_bits(cohorts: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, spilled = ClientMemory(FIRST, 20), ClientMemory(FIRST, 20, budget_mb=0, folder=folder)
        play(plain, cohorts)
        play(spilled, cohorts)
        same_bits(plain, spilled)
        assert not list(Path(folder).iterdir())  # its files have no name


def test_rows_beyond_the_budget_are_no_memory_of_the_process(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux, to measure memory")

    def anonymous() -> float:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024

    first = {"c": torch.zeros(1 << 18)}  # a MB each
    rows = torch.ones(8, 1 << 18)
    memory, before = ClientMemory(first, 1000, budget_mb=16, folder=tmp_path), anonymous()
    for start in range(0, 192, 8):
        memory.commit(replies(list(range(start, start + 8)), {"c": rows + start}))
    assert anonymous() - before < 96  # half of what there is: the budget, and what a commit takes in between
    for client in (0, 7, 8, 191, 192):
        wanted = 0.0 if client == 192 else 1.0 + client // 8 * 8
        assert bool((memory.of(torch.tensor([client]))["c"] == wanted).all())


def test_a_folder_that_cannot_hold_the_memory_is_an_error(tmp_path: Path) -> None:
    memory = ClientMemory(FIRST, 20, budget_mb=0, folder=tmp_path / "absent")
    with pytest.raises(FedoptError, match=r"the clients' memory needs 0 MB in a file of .*absent .*raise the budget"):
        memory.commit(replies([1], {"b": torch.tensor([3])}))


def small_pieces(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(engine_memory, "WHOLE", 1)
    monkeypatch.setattr(engine_memory, "PIECE", 16 * rows)  # a row of FIRST has 16 bytes


def stored(folder: Path, number: int, memory: ClientMemory, keep: int = 2) -> Any:
    path = save_checkpoint(folder, Checkpoint(number, (), memory.save(folder), {}), keep)
    return load_checkpoint(path).memory


@given(COHORTS, st.integers(0, 11), st.integers(1, 4))
def test_saved_and_restored_anywhere(cohorts: list[list[int]], stop: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        small_pieces(patch, rows)
        whole, memory = ClientMemory(FIRST, 20), ClientMemory(FIRST, 20)
        play(whole, cohorts)
        for number, cohort in enumerate(cohorts):
            play(memory, [cohort], number)
            found = stored(folder, number, memory)
            copy = ClientMemory(FIRST, 20)
            copy.restore(found)
            same_bits(copy, memory)
            if number == stop:
                memory = copy  # which goes on where the other one was, with the same pieces
        same_bits(memory, whole)
        for path in folder.glob("[0-9]*"):  # the older of the two that are kept, too
            ClientMemory(FIRST, 20).restore(load_checkpoint(path).memory)


def test_a_checkpoint_writes_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 10)
    memory = ClientMemory(FIRST, 100)
    play(memory, [list(range(100))])
    whole = stored(tmp_path, 1, memory)
    assert len(whole.names) == 10
    play(memory, [[3, 50]], 1)
    play(memory, [[50, 51]], 2)
    changed = stored(tmp_path, 2, memory)
    assert changed.names[:10] == whole.names and len(changed.names) == 11
    *_, last = changed.read()
    assert last["clients"].tolist() == [3, 50, 51]
    assert stored(tmp_path, 3, memory).names == changed.names  # nothing changed
    # as much again as the whole memory has been written after it: the whole takes the place of all pieces
    play(memory, [list(range(97))], 3)
    longest = stored(tmp_path, 4, memory)
    assert longest.names[:11] == changed.names
    play(memory, [[0]], 4)
    assert len(stored(tmp_path, 5, memory).names) == 10


def test_many_small_changes_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 1000)
    monkeypatch.setattr(engine_memory, "MOST_PIECES", 5)
    memory = ClientMemory(FIRST, 100)
    play(memory, [list(range(100))])
    lengths = []
    for number in range(8):
        play(memory, [[number]], number)
        lengths.append(len(stored(tmp_path, number, memory).names))
    assert lengths == [1, 2, 3, 4, 5, 1, 2, 3]


def test_a_save_that_failed_loses_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 10)
    memory = ClientMemory(FIRST, 20)
    play(memory, [list(range(20))])
    stored(tmp_path, 1, memory)
    play(memory, [[4, 5]], 1)
    monkeypatch.setattr(engine_memory, "write_pieces", lambda *_: (_ for _ in ()).throw(CheckpointError("full")))
    with pytest.raises(CheckpointError, match="full"):
        memory.save(tmp_path)
    monkeypatch.undo()
    small_pieces(monkeypatch, 10)
    copy = ClientMemory(FIRST, 20)
    copy.restore(stored(tmp_path, 2, memory))
    same_bits(copy, memory)


def test_a_small_memory_is_stored_as_a_whole(tmp_path: Path) -> None:
    memory = ClientMemory(FIRST, 20)
    play(memory, [[1, 2]])
    assert not isinstance(memory.save(tmp_path), Pieces) and not list(tmp_path.iterdir())
