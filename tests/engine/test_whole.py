"""A client's whole data at once is handed on without a copy, and is what the general walk gives."""

from __future__ import annotations

import pytest
import torch

from fedopt import keys
from fedopt.data import Federation, Shards
from fedopt.engine import cohort as cohorts
from fedopt.engine.cohort import Walk, Whole, assemble, walk
from fedopt.problem import Problem
from fedopt.testing.strategies import small_federation, small_problem
from fedopt.types import Batches, Exchange


def problem(sizes: tuple[int, ...], *, shuffled: bool = False) -> Problem:
    data = small_federation(sizes)
    train = data.splits["train"]
    if not shuffled:
        train = Shards(train.x[train.index], torch.arange(sum(sizes)), train.y, train.offsets)
    return small_problem(Federation({"train": train}, data.server, data.class_names))


def walked(problem: Problem, clients: list[int], batches: Batches) -> Walk | Whole:
    exchange = Exchange("train", torch.tensor(clients), {}, batches=batches)
    cohort = assemble(problem, exchange, {}, keys.root(1))
    found = walk(problem, exchange, cohort)
    assert found is not None
    return found


ONCE = Batches(size=None, shuffle=False)


@pytest.mark.parametrize("clients", [[0, 1, 2], [1, 2], [2]])
def test_it_is_what_the_general_walk_gives(clients: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    held = problem((6, 6, 6))
    found = walked(held, clients, ONCE)
    assert isinstance(found, Whole)
    monkeypatch.setattr(cohorts, "whole", lambda shards, cohort, layout: None)
    wanted = walked(held, clients, ONCE)
    assert isinstance(wanted, Walk)
    assert torch.equal(found.steps, wanted.steps)
    for k in range(1, len(clients) + 1):
        one, other = found.batch(0, slice(0, k)), wanted.batch(0, slice(0, k))
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    if len(clients) == 1:
        one, other = found.single(0), wanted.single(0)
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_nothing_is_copied() -> None:
    held = problem((6, 6, 6))
    x = held.data.splits["train"].x
    assert walked(held, [1], ONCE).single(0)["x"].data_ptr() == x[6:].data_ptr()
    assert walked(held, [1, 2], ONCE).batch(0, slice(0, 2))["x"].data_ptr() == x[6:].data_ptr()


@pytest.mark.parametrize(
    ("held", "clients", "batches"),
    [
        (problem((6, 6, 6), shuffled=True), [0, 1], ONCE),
        (problem((6, 5, 6)), [0, 1], ONCE),
        (problem((6, 6, 6)), [0, 2], ONCE),
        (problem((6, 6, 6)), [0, 1], Batches(size=None)),
        (problem((6, 6, 6)), [0, 1], Batches(size=3, shuffle=False)),
        (problem((6, 6, 6)), [0, 1], Batches(size=None, shuffle=False, epochs=2)),
        (problem((6, 6, 6)), [0, 1], Batches(size=None, shuffle=False, steps=2)),
    ],
    ids=["in another order", "unequal", "one left out", "shuffled", "batches", "two epochs", "two steps"],
)
def test_where_it_is_not_in_one_piece_it_is_walked_over(held: Problem, clients: list[int], batches: Batches) -> None:
    assert isinstance(walked(held, clients, batches), Walk)


def test_a_client_of_his_own_size_is_whole() -> None:
    found = walked(problem((6, 5, 6)), [1], ONCE)
    assert isinstance(found, Whole) and found.single(0)["y"].shape == (5,)
