"""Client memory against a dict of rows."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedopt.engine.memory import ClientMemory
from fedopt.types import Exchange, Replies

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
