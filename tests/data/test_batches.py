"""The walk of a client over its data, against a walk in plain loops."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedopt.data import draw
from fedopt.keys import fold, permutation, root
from fedopt.types import FedoptError


def walk(samples: int, key: Tensor, size: int | None, epochs: int, steps: int | None, shuffle: bool) -> list[list[int]]:
    """The batches of one client."""
    batches: list[list[int]] = []
    if samples == 0:
        return batches
    epoch = 0
    while len(batches) < steps if steps is not None else epoch < epochs:
        order = permutation(fold(key, "epoch", epoch), samples).tolist() if shuffle else list(range(samples))
        b = samples if size is None else size
        for start in range(0, samples, b):
            batches.append(order[start : start + b])
        epoch += 1
    return batches if steps is None else batches[:steps]


def rows(positions: Tensor, mask: Tensor) -> list[list[list[int]]]:
    """What each client uses at each step; checks that padding is zero and at the end."""
    found = []
    for p, m in zip(positions.tolist(), mask.tolist(), strict=True):
        batches = []
        for batch, real in zip(p, m, strict=True):
            count = sum(real)
            assert real == [True] * count + [False] * (len(real) - count)
            assert all(value == 0 for value in batch[count:])
            batches.append(batch[:count])
        while batches and not batches[-1]:
            batches.pop()
        assert all(batches)
        found.append(batches)
    return found


cohorts = st.lists(st.integers(0, 13), min_size=1, max_size=6)


@given(cohorts, st.none() | st.integers(1, 15), st.integers(1, 3), st.none() | st.integers(1, 9), st.booleans())
def test_draw_against_loops(sizes: list[int], size: int | None, epochs: int, steps: int | None, shuffle: bool) -> None:
    keys = fold(root(7), torch.arange(len(sizes)))
    positions, mask = draw(torch.tensor(sizes), keys, size, epochs, steps, shuffle)
    want = [walk(n, key, size, epochs, steps, shuffle) for n, key in zip(sizes, keys, strict=True)]
    assert rows(positions, mask) == want
    longest = max(len(batches) for batches in want)
    widest = max(sizes) if size is None else min(size, max(sizes))
    assert positions.shape == mask.shape == (len(sizes), longest, widest)
    assert positions.dtype == torch.int64 and mask.dtype == torch.bool


@given(cohorts, st.none() | st.integers(1, 15), st.integers(1, 3), st.none() | st.integers(1, 9), st.data())
def test_a_client_walks_alone_as_in_any_cohort(
    sizes: list[int], size: int | None, epochs: int, steps: int | None, data: st.DataObject
) -> None:
    keys = fold(root(3), torch.arange(len(sizes)))
    together = rows(*draw(torch.tensor(sizes), keys, size, epochs, steps, True))
    i = data.draw(st.integers(0, len(sizes) - 1))
    assert (
        rows(*draw(torch.tensor(sizes[i : i + 1]), keys[i : i + 1], size, epochs, steps, True)) == together[i : i + 1]
    )


def test_an_epoch_uses_every_sample_once_and_epochs_differ() -> None:
    positions, mask = draw(torch.tensor([20]), root(1)[None], 5, 2, None, True)
    first, second = positions[0, :4].flatten().tolist(), positions[0, 4:].flatten().tolist()
    assert mask.all() and sorted(first) == sorted(second) == list(range(20)) and first != second != list(range(20))


def test_clients_with_other_keys_walk_otherwise() -> None:
    positions, _ = draw(torch.tensor([30, 30]), fold(root(1), torch.arange(2)), None, 1, None, True)
    assert positions[0, 0].tolist() != positions[1, 0].tolist()


def test_mistakes_are_named() -> None:
    sizes, keys = torch.tensor([3]), root(0)[None]
    for arguments, message in (
        ((0, 1, None), "batch size of at least 1 was needed, 0"),
        ((5, 0, None), "number of epochs of at least 1 was needed, 0"),
        ((5, 1, -2), "number of steps of at least 1 was needed, -2"),
    ):
        with pytest.raises(FedoptError, match=message):
            draw(sizes, keys, *arguments, True)
    with pytest.raises(FedoptError, match="one size and one key per client"):
        draw(sizes, root(0), 5, 1, None, True)


def test_a_cohort_of_a_thousand_is_drawn_without_a_loop_over_clients() -> None:
    sizes, keys = torch.full((1000,), 50), fold(root(0), torch.arange(1000))
    start = time.perf_counter()
    draw(sizes, keys, 10, 1, None, True)
    assert time.perf_counter() - start < 0.5
