"""Each optimizer against torch's own, or against its paper's algorithm one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt.optimizers import build, hyper

STEPS = 50


def gradient(x: Tensor, t: int) -> Tensor:
    """A gradient that depends on where one is and changes its scale and sign over time."""
    return (x - math.cos(t)) * torch.tensor([1.0, 0.01, 30.0, 1e-3], dtype=torch.float64) + math.sin(3 * t)


START = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def trajectory(name: str, options: dict[str, Any]) -> list[Tensor]:
    optimizer = build(name, options)
    params = {"x": START}
    state = optimizer.init(params)
    points = []
    for t in range(STEPS):
        params, state = optimizer.update({"x": gradient(params["x"], t)}, state, params, hyper(optimizer, t))
        points.append(params["x"])
    return points


def torch_trajectory(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> list[Tensor]:
    x = torch.nn.Parameter(START.clone())
    theirs = make([x])
    points = []
    for t in range(STEPS):
        x.grad = gradient(x.detach(), t)
        theirs.step()
        points.append(x.detach().clone())
    return points


@pytest.mark.parametrize(
    ("name", "options", "make"),
    [
        ("sgd", {"lr": 0.01}, lambda p: torch.optim.SGD(p, lr=0.01)),
        (
            "sgd",
            {"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.3, weight_decay=0.1),
        ),
        (
            "sgd",
            {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.1),
        ),
        ("adam", {"lr": 0.1}, lambda p: torch.optim.Adam(p, lr=0.1)),
        (
            "adam",
            {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.2},
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), eps=1e-2, weight_decay=0.2),
        ),
        ("adamw", {"lr": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.1)),
        (
            "adamw",
            {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.5},
            lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.5, 0.9), eps=1e-2, weight_decay=0.5),
        ),
        ("adagrad", {"lr": 0.1}, lambda p: torch.optim.Adagrad(p, lr=0.1)),
        (
            "adagrad",
            {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.2, "initial_accumulator": 0.5},
            lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3, weight_decay=0.2, initial_accumulator_value=0.5),
        ),
    ],
)
def test_equals_torch(
    name: str, options: dict[str, Any], make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    for ours, theirs in zip(trajectory(name, options), torch_trajectory(make), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def reddi(method: str, eta: float, beta1: float, beta2: float, tau: float) -> list[list[float]]:
    """Algorithm 2 of Reddi et al. 2021, with Delta_t = -gradient, one coordinate after another."""
    x = START.tolist()
    m = [0.0] * len(x)
    v = [tau**2] * len(x)
    points = []
    for t in range(STEPS):
        delta = (-gradient(torch.tensor(x, dtype=torch.float64), t)).tolist()
        for j in range(len(x)):
            m[j] = beta1 * m[j] + (1 - beta1) * delta[j]
            sq = delta[j] ** 2
            if method == "adagrad":
                v[j] = v[j] + sq
            elif method == "yogi":
                sign = 0 if v[j] == sq else (1 if v[j] > sq else -1)
                v[j] = v[j] - (1 - beta2) * sq * sign
            else:
                v[j] = beta2 * v[j] + (1 - beta2) * sq
            x[j] = x[j] + eta * m[j] / (math.sqrt(v[j]) + tau)
        points.append(list(x))
    return points


@pytest.mark.parametrize("tau", [1e-1, 1e-3])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("adam", {"beta1": 0.9, "beta2": 0.99, "bias_correction": False}),
        ("yogi", {"beta1": 0.9, "beta2": 0.99}),
        ("adagrad", {"beta1": 0.9}),
        ("adagrad", {"beta1": 0.0}),
    ],
)
def test_server_optimizers_of_reddi_et_al(name: str, extra: dict[str, Any], tau: float) -> None:
    options = {"lr": 0.05, "eps": tau, "initial_accumulator": tau**2, **extra}
    want = reddi(name, 0.05, extra["beta1"], extra.get("beta2", 0.0), tau)
    got = [x.tolist() for x in trajectory(name, options)]
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, rel=0, abs=1e-10)


def test_yogi_with_bias_correction_and_penalty() -> None:
    lr, b1, b2, eps, decay, v0 = 0.05, 0.8, 0.95, 1e-2, 0.3, 0.2
    x = START.tolist()
    m, v = [0.0] * 4, [v0] * 4
    got = trajectory(
        "yogi",
        {
            "lr": lr,
            "beta1": b1,
            "beta2": b2,
            "eps": eps,
            "weight_decay": decay,
            "bias_correction": True,
            "initial_accumulator": v0,
        },
    )
    for t in range(STEPS):
        g = gradient(torch.tensor(x, dtype=torch.float64), t).tolist()
        for j in range(4):
            gj = g[j] + decay * x[j]
            m[j] = b1 * m[j] + (1 - b1) * gj
            v[j] = v[j] - (1 - b2) * gj * gj * math.copysign(1.0, v[j] - gj * gj)
            m_hat, v_hat = m[j] / (1 - b1 ** (t + 1)), v[j] / (1 - b2 ** (t + 1))
            x[j] -= lr * m_hat / (math.sqrt(v_hat) + eps)
        assert got[t].tolist() == pytest.approx(x, rel=0, abs=1e-10)


def test_the_optimizers_are_told_apart() -> None:
    ends = {
        name: trajectory(name, {"lr": 0.01, **({"weight_decay": 0.1} if name != "adagrad" else {})})[-1]
        for name in ("sgd", "adam", "adamw", "yogi", "adagrad")
    }
    names = list(ends)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert float((ends[a] - ends[b]).abs().max()) > 1e-4, (a, b)


def test_plain_descent_keeps_no_state() -> None:
    assert build("sgd", {"lr": 0.1}).init({"x": START}) == {}
    assert set(build("adagrad", {}).init({"x": START})) == {"v"}
