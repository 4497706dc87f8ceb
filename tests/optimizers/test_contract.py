"""What every optimizer of the registry promises, whoever wrote it."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys, schedules
from fedopt.optimizers import (
    Grouped,
    Values,
    advance,
    as_torch,
    asks,
    build,
    groups_of,
    hyper,
    hyper_parameters,
    registry,
    scalar_fields,
)
from fedopt.registry import facts
from fedopt.types import FedoptError, Named, Optimizer

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ],
    "adam": [{"weight_decay": 0.1}, {"bias_correction": False, "eps": 1e-3, "initial_accumulator": 1e-6}],
    "adamw": [{"bias_correction": False, "initial_accumulator": 1e-4}],
    "yogi": [{"bias_correction": True, "weight_decay": 0.1}],
    "rmsprop": [{"centered": True, "momentum": 0.9, "weight_decay": 0.1}],
    "signum": [{"momentum": 0.0, "weight_decay": 0.1}],
    "normalised_sgd": [{"over": "all", "nesterov": True}, {"momentum": 0.0}],
    "schedule_free": [{"base": "sgd", "lr": 0.1, "warmup": 3}],
    "muon": [{"ns": "svd", "nesterov": False, "scale": "rms", "vectors": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}],
    "clip_sgd": [{"lr": 0.1, "threshold": 0.5, "momentum": 0.9, "average": True, "weight_decay": 0.1}],
    "alias": [
        {"option": "I", "same_sample": False, "momentum": 0.9, "evidence": "grad_sign", "weight_decay": 0.1},
        {"true_distance": True, "weight_decay": 0.1},
        {"update_gap": 3, "same_sample": False, "warmup_steps": 2, "option": "I"},
        {"option": "I", "norm_swap": True, "same_sample": False, "eta_0": 0.0, "per_tensor": True},
    ],
    "alias_adam": [{"form": "llm", "d_0": 1.0, "r_0": 1.0, "weight_decay": 0.1}],
    "also": [
        {
            "groups": 3,
            "lookahead": "peek",
            "prior": [3.0, 2.0, 1.0],
            "start": [1.0, 1.0, 1.0],
            "pi_update": "projected",
            "cap": 0.7,
            "alpha": 0.5,
            "loss_scale": 1.0,
        },
        {"groups": 2, "mode": "descent_ascent", "pi_lr": 0.5, "pi_decay": 0.3, "log_eps": 1.2e-7, "temperature": 2.0},
    ],
    "zero_order": [
        {"of": {"name": "adamm", "lr": 0.1}, "queries": 2, "form": "one_sided", "directions": "sphere"},
        {"of": {"name": "sgd", "lr": 0.1}, "sign": True, "directions": {"name": "gaussian", "layers": 0.5}},
        {"of": {"name": "sgd", "lr": 0.1}, "directions": "orthogonal"},
    ],
    "jaguar": [{"lr": 0.1, "block": "entry"}, {"lr": 0.1, "step": "muon", "memory": "released", "share": 0.5}],
    "ldsd": [
        {"of": {"name": "signum", "lr": 0.1}, "layers": 0.5, "reevaluate": True, "baseline": "mean"},
        {"of": {"name": "sgd", "lr": 0.1}, "learn_mu": False, "candidates": 1},
    ],
    "scion": [{"constrained": True, "ns": "cubic"}],
    "lion_muon": [{"period": 3}],
    "preconditioned": [
        {"lr": 0.1, "norm": "max_entry", "preconditioner": {"name": "eigenbasis"}, "nesterov": True},
        {"lr": 0.1, "norm": "frobenius", "preconditioner": "kronecker", "weight_decay": 0.1},
    ],
    "adagrad": [{"initial_accumulator": 0.1, "weight_decay": 0.01, "beta1": 0.5}],
}


def cases() -> list[Any]:
    found = []
    for name in registry.names():
        required = {o.name: 0.05 for o in registry.options(name).values() if o.required}
        required = dict(facts(registry.get(name)).get("examples", (required,))[0])
        for index, options in enumerate([required, *VARIANTS.get(name, [])]):
            found.append(pytest.param(name, options, id=f"{name}-{index}"))
    return found


every = pytest.mark.parametrize(("name", "options"), cases())
rated = pytest.mark.parametrize(
    ("name", "options"), [case for case in cases() if "lr" in registry.options(str(case.values[0]))]
)
"""Those with a learning rate of their own, and not of an optimizer within."""

SHAPES = {"0": (3, 2), "1": (2,), "2": ()}
"""By number, as the facade names them: random directions go by name."""


def some(seed: int, *lead: int) -> Named:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn((*lead, *s), generator=generator, dtype=torch.float64) for k, s in SHAPES.items()}


def slope(g: Named, x: Named) -> tuple[Named, Tensor]:
    """Gradient and value of ⟨g, x⟩ + 0.05 ‖x‖² + 3."""
    value = sum((g[k] * x[k] + 0.05 * x[k] ** 2).sum() for k in x)
    return {k: g[k] + 0.1 * x[k] for k in x}, torch.as_tensor(value) + 3.0


def move(optimizer: Optimizer, g: Named, state: Any, params: Named, h: Named, step: int = 0) -> tuple[Named, Any]:
    """One step with all that the optimizer asks for."""
    number = groups_of(optimizer)

    def groups(x: Named, weights: Any) -> Grouped:
        count = torch.full_like(g["2"], float(len(ODDS)))
        each, of = parts(g, x)
        w = weights(count)[of]
        grads = {
            k: torch.stack([w[i] * ODDS[i] * t for i in range(len(ODDS))]).sum(0) for k, t in slope(g, x)[0].items()
        }
        return Grouped(grads, each.mean(), torch.zeros_like(weights(count)).index_add(0, of, each), count)

    # as the facade has it for its first group
    values = Values(lambda x: slope(g, x)[1], keys.fold(keys.root(0), "directions", step))
    params, state, _, _ = advance(
        optimizer, lambda x: slope(g, x), state, params, h, groups if number else None, values=values
    )
    return params, state


ODDS = (0.2, 0.5, 0.3)
"""Shares of the loss that three samples have."""


def parts(g: Named, x: Named) -> tuple[Tensor, Tensor]:
    """The losses of three samples, and their groups."""
    value = sum((g[k] * x[k] + 0.05 * x[k] ** 2).sum() for k in x)
    return torch.stack([odd * (torch.as_tensor(value) + 3.0) for odd in ODDS]), torch.tensor([0, 1, 0])


def run(optimizer: Optimizer, params: Named, grads: list[Named]) -> Named:
    state = optimizer.init(params)
    for step, g in enumerate(grads):
        params, state = move(optimizer, g, state, params, hyper(optimizer, 0), step)
    return params


def closure(tensors: list[Tensor], g: Named, grouped: bool = False) -> Any:
    """What a user of the facade writes."""
    if grouped:
        return lambda: parts(g, dict(zip(g, tensors, strict=True)))

    def evaluate() -> Tensor:
        grads, value = slope(g, dict(zip(g, (t.detach() for t in tensors), strict=True)))
        for t, x in zip(tensors, grads.values(), strict=True):
            t.grad = x.clone()
        return value

    return evaluate


def leaves(tree: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def assert_close(a: Named, b: Named) -> None:
    assert list(a) == list(b)
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-12)


@every
def test_the_parameters_move(name: str, options: dict[str, Any]) -> None:
    params = some(0)
    new = run(build(name, options), params, [some(1)])
    for k in params:
        assert new[k].shape == params[k].shape and new[k].dtype == params[k].dtype
        # a method that looks at some of the entries in a step leaves the others where they are
        assert "function" in asks(build(name, options)) or not torch.equal(new[k], params[k])
    assert any(not torch.equal(new[k], params[k]) for k in params)


@every
def test_facade_equals_pair(name: str, options: dict[str, Any]) -> None:
    optimizer, start, grads = build(name, options), some(0), [some(t) for t in range(1, 8)]
    tensors = [torch.nn.Parameter(x.clone()) for x in start.values()]
    facade = as_torch(tensors, optimizer)
    assert isinstance(facade, torch.optim.Optimizer)
    for g in grads:
        facade.step(closure(tensors, g, groups_of(optimizer) is not None))
    assert_close(dict(zip(start, (t.detach() for t in tensors), strict=True)), run(optimizer, start, grads))


@every
def test_a_facade_that_has_to_evaluate_by_itself_says_so(name: str, options: dict[str, Any]) -> None:
    optimizer, tensor = build(name, options), torch.nn.Parameter(torch.ones(2))
    tensor.grad = torch.ones(2)
    facade = as_torch([tensor], optimizer)
    if asks(optimizer) or hasattr(optimizer, "ahead"):
        with pytest.raises(FedoptError, match=r"step\(closure\) is needed"):
            facade.step()
    else:
        assert facade.step() is None


@every
def test_stacked_equals_pair(name: str, options: dict[str, Any]) -> None:
    optimizer, n = build(name, options), 4
    start, grads = some(0, n), [some(t, n) for t in range(1, 8)]
    params, state = start, torch.vmap(optimizer.init)(start)
    for t, g in enumerate(grads):
        step = torch.vmap(functools.partial(move, optimizer, step=t), in_dims=(0, 0, 0, None))
        params, state = step(g, state, params, hyper(optimizer, 0))
    assert all(x.shape[0] == n for x in leaves(state))
    for i in range(n):
        alone = run(optimizer, {k: x[i] for k, x in start.items()}, [{k: x[i] for k, x in g.items()} for g in grads])
        assert_close({k: x[i] for k, x in params.items()}, alone)


@every
def test_stacked_with_hyper_parameters_of_each_client(name: str, options: dict[str, Any]) -> None:
    optimizer, n = build(name, options), 3
    params, grads = some(0, n), some(1, n)
    own = {k: torch.stack([h * (1 - 0.1 * i) for i in range(n)]) for k, h in hyper(optimizer, 0).items()}
    state = torch.vmap(optimizer.init)(params)
    new, _ = torch.vmap(functools.partial(move, optimizer))(grads, state, params, own)
    for i in range(n):
        x, g = ({k: v[i] for k, v in tree.items()} for tree in (params, grads))
        alone, _ = move(optimizer, g, optimizer.init(x), x, {k: h[i] for k, h in own.items()})
        assert_close({k: v[i] for k, v in new.items()}, alone)


@every
def test_clients_may_be_at_different_steps(name: str, options: dict[str, Any]) -> None:
    optimizer, h = build(name, options), hyper(build(name, options), 0)
    fresh, veteran = some(0), some(1)
    states = [optimizer.init(fresh), optimizer.init(veteran)]
    for t in range(5):
        veteran, states[1] = move(optimizer, some(10 + t), states[1], veteran, h)
    grads = [some(2), some(3)]
    together = torch.utils._pytree.tree_map(lambda *x: torch.stack(x), *states)
    new, _ = torch.vmap(functools.partial(move, optimizer), in_dims=(0, 0, 0, None))(
        {k: torch.stack([g[k] for g in grads]) for k in SHAPES},
        together,
        {k: torch.stack([fresh[k], veteran[k]]) for k in SHAPES},
        h,
    )
    for i, x in enumerate((fresh, veteran)):
        assert_close({k: v[i] for k, v in new.items()}, move(optimizer, grads[i], states[i], x, h)[0])


@every
def test_nothing_given_is_changed(name: str, options: dict[str, Any]) -> None:
    optimizer = build(name, options)
    params, grads, h = some(0), some(1), hyper(optimizer, 0)
    _, state = move(optimizer, some(2), optimizer.init(params), params, h)
    given = (grads, state, params, h)
    before = copy.deepcopy(given)
    move(optimizer, *given)
    for a, b in zip(leaves(given), leaves(before), strict=True):
        assert torch.equal(a, b)


@every
def test_dtype_of_params_and_state_is_kept(name: str, options: dict[str, Any]) -> None:
    optimizer = build(name, options)
    params = {k: x.float() for k, x in some(0).items()}
    state = optimizer.init(params)
    for _ in range(2):
        params, state = move(optimizer, {k: x.float() for k, x in some(1).items()}, state, params, hyper(optimizer, 0))
    assert all(x.dtype == torch.float32 for x in leaves((params, state)))


@every
def test_facade_state_dict_round_trip_continues_identically(name: str, options: dict[str, Any]) -> None:
    optimizer, grads = build(name, options), [some(t) for t in range(1, 9)]

    def fresh(values: list[Tensor]) -> tuple[list[Tensor], torch.optim.Optimizer]:
        tensors: list[Tensor] = [torch.nn.Parameter(x.detach().clone()) for x in values]
        return tensors, as_torch(tensors, optimizer)

    def advance(tensors: list[Tensor], facade: torch.optim.Optimizer, some_grads: list[Named]) -> None:
        for g in some_grads:
            facade.step(closure(tensors, g, groups_of(optimizer) is not None))

    whole, facade = fresh(list(some(0).values()))
    advance(whole, facade, grads[:4])
    file = io.BytesIO()
    torch.save(facade.state_dict(), file)
    file.seek(0)
    resumed, second = fresh(whole)
    second.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(facade)
    advance(whole, facade, grads[4:])
    advance(resumed, second, grads[4:])
    advance(copied.param_groups[0]["params"], copied, grads[4:])
    for a, b, c in zip(whole, resumed, copied.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@rated
def test_a_schedule_is_read_at_the_round(name: str, options: dict[str, Any]) -> None:
    table = {"schedule": "linear", "start": 0.2, "end": 0.0, "rounds": 4}
    scheduled = build(name, {**options, "lr": table})
    params, grads = some(0), some(1)
    state = scheduled.init(params)
    for round in range(4):
        fixed = build(name, {**options, "lr": 0.2 - 0.05 * round})
        got, after = move(scheduled, grads, state, params, hyper(scheduled, round))
        want, _ = move(fixed, grads, state, params, hyper(fixed, 0))
        assert_close(got, want)
        params, state = got, after


@rated
def test_facade_advances_its_own_schedule_with_each_step(name: str, options: dict[str, Any]) -> None:
    table = {"schedule": "linear", "start": 0.2, "end": 0.0, "rounds": 4}
    scheduled = build(name, {**options, "lr": table})
    tensor = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    facade = as_torch([tensor], scheduled)
    params: Named = {"0": tensor.detach().clone()}
    state = scheduled.init(params)
    for round in range(4):
        g = {"0": torch.full((2,), 0.5, dtype=torch.float64)}
        facade.step(closure([tensor], g))
        params, state = move(scheduled, g, state, params, hyper(scheduled, round), round)
    torch.testing.assert_close(tensor.detach(), params["0"], rtol=0, atol=1e-12)


@every
def test_hyper_parameters_are_scalars_of_the_wanted_dtype(name: str, options: dict[str, Any]) -> None:
    optimizer = build(name, options)
    assert ("lr" in scalar_fields(type(optimizer))) == ("lr" in registry.options(name))
    for dtype in (torch.float32, torch.float64):
        for field, h in hyper_parameters(optimizer, 3, dtype).items():
            assert h.shape == () and h.dtype == dtype
            *inner, last = field.split(".")
            owner = functools.reduce(getattr, inner, optimizer)
            assert float(h) == pytest.approx(schedules.at(getattr(owner, last), 3), rel=1e-6)


@every
def test_optimizers_are_values(name: str, options: dict[str, Any]) -> None:
    assert build(name, options) == build(name, options)
    assert hash(build(name, options)) == hash(build(name, options))
