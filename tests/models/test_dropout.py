"""Dropout as a pure function of its key."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedopt import keys
from fedopt.models import KeyedDropout, key_dropout


def apply(module: nn.Module, key: Tensor, x: Tensor) -> Tensor:
    result: Tensor = functional_call(module, {"dropout_key": key}, (x,))
    return result


def test_same_mask_alone_and_stacked() -> None:
    module, n = KeyedDropout(0.4), 5
    x = torch.randn(n, 6, 7)
    key = keys.fold(keys.root(0), torch.arange(n))
    stacked = torch.vmap(lambda k, v: apply(module, k, v))(key, x)
    for i in range(n):
        assert torch.equal(stacked[i], apply(module, key[i], x[i]))
    kept = stacked != 0
    assert not torch.equal(kept[0], kept[1])


def test_mask_is_the_documented_one() -> None:
    key, x = keys.root(3), torch.randn(4, 5)
    kept = keys.uniform(key, 4, 5) >= 0.3
    expected = torch.zeros(4, 5)
    for i in range(4):
        for j in range(5):
            if kept[i, j]:
                expected[i, j] = x[i, j] / 0.7
    torch.testing.assert_close(apply(KeyedDropout(0.3), key, x), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean_are_kept(p: float) -> None:
    x = torch.ones(200, 500, dtype=torch.float64)
    y = apply(KeyedDropout(p), keys.root(1), x)
    share = float((y == 0).double().mean())
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(share - p) < 5 * deviation
    assert abs(float(y.mean()) - 1) < 5 * deviation / (1 - p)


def test_first_samples_keep_their_masks_when_the_batch_is_padded() -> None:
    x = torch.randn(8, 3)
    module, key = KeyedDropout(0.5), keys.root(2)
    assert torch.equal(apply(module, key, x)[:5], apply(module, key, x[:5]))


def test_off_in_evaluation_and_at_zero() -> None:
    x = torch.randn(4, 5)
    assert torch.equal(KeyedDropout(0.5).eval()(x), x)
    assert torch.equal(KeyedDropout(0.0)(x), x)
    assert torch.equal(KeyedDropout(1.0)(x), torch.zeros_like(x))


def test_infinite_activations_that_are_dropped_are_zero() -> None:
    y = apply(KeyedDropout(0.5), keys.root(0), torch.full((100,), torch.inf))
    assert set(y.tolist()) == {0.0, torch.inf}


def test_every_dropout_of_a_module_is_replaced_in_place() -> None:
    shared = nn.Dropout(0.5)
    module = nn.Sequential(
        nn.Linear(3, 3),
        shared,
        nn.Sequential(nn.Linear(3, 3), shared, nn.Dropout(0.0), nn.ModuleList([nn.Dropout(0.2)])),
    ).eval()
    assert key_dropout(module) == 3
    found = [m for m in module.modules() if isinstance(m, KeyedDropout)]
    assert [m.p for m in found] == [0.5, 0.5, 0.2]
    assert not any(m.training for m in found)
    assert sum(isinstance(m, nn.Dropout) for m in module.modules()) == 1  # p = 0 does nothing and may stay
    assert [n for n, _ in module.named_buffers()] == ["1.dropout_key", "2.1.dropout_key", "2.3.0.dropout_key"]
    assert "1.dropout_key" not in module.state_dict()
    assert key_dropout(module) == 0


def test_dtype_changes_leave_the_key_alone() -> None:
    module = copy.deepcopy(KeyedDropout(0.5)).to(torch.float64)
    assert module.dropout_key.dtype == torch.int64
    assert module(torch.ones(3, dtype=torch.float64)).dtype == torch.float64
