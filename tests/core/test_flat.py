"""Named tensors and the flat vector."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from fedopt.flat import FlatSpec


def named() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7.0), "c": torch.zeros(0, 4), "d": torch.ones(2)}


def test_round_trip_and_order() -> None:
    spec = FlatSpec.of(named())
    vector = spec.flatten(named())
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7, 1, 1]
    assert spec.numel == 9 and spec.numels == (6, 1, 0, 2)
    back = spec.unflatten(vector)
    assert {name: tensor.shape for name, tensor in back.items()} == {name: t.shape for name, t in named().items()}
    for name, tensor in named().items():
        assert torch.equal(back[name], tensor)


def test_the_order_of_the_dict_does_not_matter() -> None:
    spec = FlatSpec.of(named())
    assert torch.equal(spec.flatten(dict(reversed(named().items()))), spec.flatten(named()))


def test_under_vmap() -> None:
    spec = FlatSpec.of(named())
    rows = torch.randn(4, spec.numel)
    assert torch.equal(vmap(lambda v: spec.flatten(spec.unflatten(v)))(rows), rows)


def test_unflatten_gives_views() -> None:
    spec = FlatSpec.of(named())
    vector = spec.flatten(named())
    spec.unflatten(vector)["d"].zero_()
    assert vector[-2:].tolist() == [0, 0]


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"9 entries was needed, one of shape \(8,\)"):
        FlatSpec.of(named()).unflatten(torch.zeros(8))


def test_nothing_to_flatten() -> None:
    spec = FlatSpec.of({}, torch.float64)
    assert spec.flatten({}).shape == (0,) and spec.unflatten(torch.zeros(0)) == {}
