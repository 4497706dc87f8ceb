"""Graphs of recurring shapes: the same bits as the eager run, or no graph."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedopt.engine import trace
from fedopt.engine.trace import Traced


def counted(function: Any) -> tuple[Any, list[int]]:
    calls: list[int] = []

    def counting(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counting, calls


def test_a_recurring_shape_is_run_as_a_graph_with_the_same_bits() -> None:
    function, calls = counted(vmap(lambda w, x: {"y": torch.tanh(x @ w), "sum": x.sum()}))
    traced = Traced()
    with torch.no_grad():
        for turn in range(trace.PATIENCE + trace.PROOFS + 5):
            generator = torch.Generator().manual_seed(turn)
            w, x = torch.randn(6, 5, 3, generator=generator), torch.randn(6, 4, 5, generator=generator)
            before = len(calls)
            got = traced("f", function, w, x)
            ran = len(calls) - before
            wanted = vmap(lambda w, x: {"y": torch.tanh(x @ w), "sum": x.sum()})(w, x)
            assert torch.equal(got["y"], wanted["y"]) and torch.equal(got["sum"], wanted["sum"])
    assert ran == 0, "the last calls should have gone to the graph"


def test_another_shape_has_a_graph_of_its_own() -> None:
    function, _ = counted(lambda x: x * x.shape[0])
    traced = Traced()
    for _ in range(10):
        for n in (2, 3, 5):
            x = torch.arange(n, dtype=torch.float32)
            assert torch.equal(traced("f", function, x), x * n)


def test_one_tensor_in_two_places_does_not_tie_them_together() -> None:
    traced = Traced()

    def both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + 1, b * 2

    zero = torch.zeros(1)
    for _ in range(trace.PATIENCE + trace.PROOFS):
        traced("f", both, zero, zero)
    a, b = traced("f", both, torch.tensor([3.0]), torch.tensor([5.0]))
    assert a.item() == 4.0 and b.item() == 10.0


def test_what_cannot_be_traced_runs_as_it_is() -> None:
    function, calls = counted(lambda x: x * 2 if bool(x.sum() > 0) else x)
    traced = Traced()
    for turn in range(12):
        x = torch.full((3,), float(turn % 2) - 0.5)
        assert torch.equal(traced("f", function, x), x * 2 if turn % 2 else x)
    assert len(calls) >= 12


def test_a_graph_that_does_not_repeat_the_eager_run_is_not_used() -> None:
    numbers = iter(range(100))
    traced = Traced()
    found = [float(traced("f", lambda x: x + next(numbers), torch.zeros(1))) for _ in range(12)]
    assert all(one < other for one, other in itertools.pairwise(found)), "a number was baked in"


def test_nan_repeats_nan() -> None:
    function, calls = counted(lambda x: x / x)
    traced = Traced()
    for _ in range(trace.PATIENCE + trace.PROOFS + 1):
        assert bool(torch.isnan(traced("f", function, torch.zeros(2))).all())
    before = len(calls)
    traced("f", function, torch.zeros(2))
    assert len(calls) == before


def test_no_more_shapes_are_kept_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "KEPT", 3)
    traced = Traced()
    for n in range(1, 10):
        traced("f", torch.sin, torch.ones(n))
    assert len(traced._known) == 3
