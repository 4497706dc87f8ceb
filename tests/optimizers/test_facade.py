"""The facade among torch's own tools: groups, closures, schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt.optimizers import as_torch, build


def pair_of_params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([1.0, 2.0], [3.0])]


def groups(p: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": [p[0]], "lr": 0.5}, {"params": [p[1]], "momentum": 0.9}]


def test_groups_have_their_own_values() -> None:
    ours, theirs = pair_of_params(), pair_of_params()
    facade = as_torch(groups(ours), build("sgd", {"lr": 0.1}))
    torch_sgd = torch.optim.SGD(groups(theirs), lr=0.1)
    for t in range(4):
        for p in (*ours, *theirs):
            p.grad = torch.full_like(p, 1.0 + t)
        facade.step()
        torch_sgd.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=8),
    ],
)
def test_schedulers_of_torch_set_lr_and_momentum(schedule: object) -> None:
    ours, theirs = pair_of_params(), pair_of_params()
    both: list[tuple[list[torch.nn.Parameter], torch.optim.Optimizer]] = [
        (ours, as_torch(ours, build("sgd", {"lr": 0.2, "momentum": 0.5}))),
        (theirs, torch.optim.SGD(theirs, lr=0.2, momentum=0.5)),
    ]
    for tensors, optimizer in both:
        scheduler = schedule(optimizer)  # type: ignore[operator]
        for t in range(6):
            for p in tensors:
                p.grad = torch.full_like(p, 1.0 - t)
            optimizer.step()
            scheduler.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_momentum_switched_on_later_starts_its_buffer_then() -> None:
    ours, theirs = pair_of_params(), pair_of_params()
    both = [(ours, as_torch(ours, build("sgd", {"lr": 0.2}))), (theirs, torch.optim.SGD(theirs, lr=0.2))]
    for tensors, optimizer in both:
        for t in range(6):
            if t == 3:
                optimizer.param_groups[0]["momentum"] = 0.9
            for p in tensors:
                p.grad = torch.full_like(p, 1.0 + t)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_closure_is_called_with_gradients() -> None:
    x = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    facade = as_torch([x], build("adam", {"lr": 0.1}))

    def closure() -> float:
        facade.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss.item()

    losses = [facade.step(closure) for _ in range(200)]
    assert losses[0] == 25.0 and float(losses[-1] or 0.0) < 0.1


def test_a_parameter_without_gradient_keeps_its_value() -> None:
    moved, frozen = pair_of_params()
    facade = as_torch([("moved", moved), ("frozen", frozen)], build("sgd", {"lr": 0.1, "weight_decay": 0.5}))
    before = frozen.detach().clone()
    moved.grad = torch.ones_like(moved)
    facade.step()
    assert torch.equal(frozen, before) and not torch.equal(moved, torch.tensor([1.0, 2.0], dtype=torch.float64))
    facade.zero_grad()
    assert moved.grad is None
