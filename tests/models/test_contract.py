"""What every network of the registry promises."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from fedopt import keys
from fedopt.models import build, key_dropout, registry, stackable
from fedopt.types import Named


class Case(NamedTuple):
    inputs: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    vocabulary: int | None = None
    per_position: bool = False


CLASSES = 3

CASES: dict[str, list[Case]] = {
    "logistic": [Case((5,)), Case((1, 3, 2), {"bias": False})],
    "mlp": [Case((2, 4)), Case((6,), {"hidden": [5, 4], "activation": "tanh"}), Case((6,), {"hidden": []})],
    "cnn": [Case((2, 6, 7)), Case((1, 8, 8), {"dropout": [0.3, 0.5]})],
    "lenet5": [Case((1, 12, 13)), Case((3, 32, 32))],
    "resnet8": [Case((2, 5, 5), {"width": 4})],
    "resnet18": [Case((2, 5, 5), {"width": 4})],
    "resnet1d": [Case((2, 40), {"width": 4}), Case((1, 1), {"width": 4, "groups": 1})],
    "cnn1d": [Case((2, 20), {"width": 4})],
    "char_lstm": [
        Case((5,), {"embedding": 3, "hidden": 4}, 6, per_position=True),
        Case((5,), {"embedding": 3, "hidden": 4, "layers": 1, "last": True}, 6),
    ],
    "causal_transformer": [
        Case((5,), {"dim": 8, "heads": 2, "depth": 2}, 6, per_position=True),
        Case((5,), {"dim": 4, "heads": 2, "depth": 1, "dropout": 0.3, "last": True}, 6),
    ],
    "transformer": [
        Case((5,), {"dim": 8, "heads": 2, "depth": 2}, 6),
        Case((5,), {"dim": 4, "heads": 2, "depth": 1, "dropout": 0.3}, 6),
    ],
}

every = pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)],
)


def made(name: str, case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    return build(
        name,
        case.options,
        inputs=case.inputs,
        classes=CLASSES,
        vocabulary=case.vocabulary,
        key=keys.root(seed),
        dtype=dtype,
    )


def samples(case: Case, *lead: int) -> tuple[Tensor, Tensor]:
    shape = (*lead, *case.inputs)
    x = torch.randint(0, case.vocabulary, shape) if case.vocabulary else torch.randn(shape, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (*lead, case.inputs[0]) if case.per_position else lead)


def loss(module: nn.Module, params: Named, masks: Named, x: Tensor, y: Tensor) -> Tensor:
    logits = functional_call(module, {**params, **masks}, (x,))
    return F.cross_entropy(logits.reshape(-1, CLASSES), y.reshape(-1))


def dropout_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_buffers() if name.endswith("dropout_key")]


def test_every_network_is_tried() -> None:
    # a quadratic function has no classes; see test_networks.py
    assert sorted([*CASES, "quadratic"]) == registry.builtin()


@every
def test_shape_and_dtype_of_outputs(name: str, case: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        module = made(name, case, dtype=dtype)
        assert module.training
        x, _ = samples(case, 4)
        logits = module(x.to(dtype) if x.is_floating_point() else x)
        assert logits.shape == ((4, case.inputs[0], CLASSES) if case.per_position else (4, CLASSES))
        assert logits.dtype == dtype and torch.isfinite(logits).all()


@every
def test_samples_do_not_see_each_other(name: str, case: Case) -> None:
    module = made(name, case).eval()
    x, _ = samples(case, 4)
    together = module(x)
    for i in range(4):
        torch.testing.assert_close(module(x[i : i + 1])[0], together[i], rtol=0, atol=1e-12)


@every
def test_the_key_alone_decides_the_first_values(name: str, case: Case) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = made(name, case, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # torch's generator is left as it was
    torch.manual_seed(2)
    second = made(name, case, seed=3).state_dict()
    other = made(name, case, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@every
def test_only_dropout_has_buffers(name: str, case: Case) -> None:
    module = made(name, case)
    assert [n for n, _ in module.named_buffers()] == dropout_names(module)
    assert bool(dropout_names(module)) == any("dropout" in option for option in case.options)
    assert not any("dropout_key" in n for n in module.state_dict())


@every
def test_stacked_gradients_equal_those_one_by_one(name: str, case: Case) -> None:
    n = 3
    modules = [made(name, case, seed=i) for i in range(n)]
    assert stackable(modules[0]) is None
    x, y = samples(case, n, 4)
    params = {
        k: torch.stack([dict(m.named_parameters())[k].detach() for m in modules])
        for k, _ in modules[0].named_parameters()
    }
    masks = {k: keys.fold(keys.root(9), torch.arange(n), i) for i, k in enumerate(dropout_names(modules[0]))}

    def both(params: Named, masks: Named, x: Tensor, y: Tensor) -> tuple[Named, Tensor]:
        def objective(p: Named) -> Tensor:
            return loss(modules[0], p, masks, x, y)

        return grad(objective)(params), objective(params)

    stacked_grads, stacked_losses = torch.vmap(both)(params, masks, x, y)
    for i in range(n):
        own = {k: v[i].clone().requires_grad_() for k, v in params.items()}
        alone = loss(modules[0], own, {k: v[i] for k, v in masks.items()}, x[i], y[i])
        torch.testing.assert_close(stacked_losses[i], alone.detach(), rtol=0, atol=1e-10)
        for (k, p), g in zip(own.items(), torch.autograd.grad(alone, list(own.values())), strict=True):
            assert p.shape == g.shape
            torch.testing.assert_close(stacked_grads[k][i], g, rtol=0, atol=1e-10)


@every
def test_every_parameter_has_a_part_in_the_output(name: str, case: Case) -> None:
    module = made(name, case).eval()
    x, y = samples(case, 30)
    parameters = dict(module.named_parameters())
    logits = module(x)
    grads = torch.autograd.grad(F.cross_entropy(logits.reshape(-1, CLASSES), y.reshape(-1)), list(parameters.values()))
    for (k, _), g in zip(parameters.items(), grads, strict=True):
        assert g.abs().max() > 0, k


@every
def test_no_dropout_of_torch_is_left(name: str, case: Case) -> None:
    assert key_dropout(made(name, case)) == 0


@every
def test_components_take_their_offers_by_keyword(name: str, case: Case) -> None:
    with pytest.raises(TypeError):
        registry.get(name)(case.inputs, CLASSES)
    assert inspect.getdoc(registry.get(name))
