"""A graph written down for torch's interpreter computes what the graph computes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedopt.engine.lower import lower

CONSTANT = torch.tensor([1.0, -2.0, 0.5])


def _several(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    largest, where = x.max(dim=1)
    return largest, where, *torch.sort(y, dim=0)


def _lists(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    first, second = x.split([1, 2], dim=1)
    return torch.cat([second, first], dim=1), torch.stack(y.unbind(dim=0)[::-1])


def _indices(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (x[:, y.argsort(dim=1)[0]],)


def _constants(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    made = torch.arange(4, dtype=torch.int64) + torch.zeros(4, dtype=torch.bool)
    return x * CONSTANT, made, y.to(torch.float64), torch.full((2,), float("inf")), x.clamp(min=0.1)


def _scalars(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x.sum(), x / 3, (y**2).mean(dim=(0, 1)), x.sub(x, alpha=0.3), torch.div(x, 0.3, rounding_mode="floor")


def _images(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    def loss(w: Tensor) -> Tensor:
        images = F.conv2d(x.reshape(1, 1, 4, 3).repeat(2, 1, 2, 3), w, stride=(2, 1), padding=1)
        return F.max_pool2d(images.contiguous(memory_format=torch.channels_last), 2).square().sum()

    return (grad(loss)(y.reshape(1, 1, 4, 3)),)


def _stacked(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (vmap(grad(lambda w, z: torch.logsumexp(w * z, dim=0)))(x, y),)


@pytest.mark.parametrize("function", [_several, _lists, _indices, _constants, _scalars, _images, _stacked])
def test_the_interpreter_repeats_the_bits(function: Callable[..., tuple[Tensor, ...]]) -> None:
    x, y = torch.rand(4, 3), torch.randn(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        graph = make_fx(function)(*(fake.from_tensor(value) for value in (x, y)))
    lowered = lower(graph)
    for _ in range(4):  # the interpreter rewrites what it runs after the first times
        wanted = function(x, y)
        found = lowered(x, y)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
        x, y = torch.rand(4, 3), torch.randn(4, 3)


def test_what_is_no_operation_is_refused() -> None:
    graph = torch.fx.symbolic_trace(lambda x: torch.sin(x))
    with pytest.raises(TypeError, match="is no operation on tensors"):
        lower(graph)
