"""Methods that work entry by entry, against loops over single numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedopt.optimizers import advance, build, hyper
from fedopt.types import Named
from tests.optimizers.test_oracles import START, STEPS, gradient, torch_trajectory, trajectory

Numbers = list[float]


def slopes(x: Numbers, t: int) -> Numbers:
    return [float(v) for v in gradient(torch.tensor(x, dtype=torch.float64), t)]


def sign(v: float) -> float:
    return float((v > 0) - (v < 0))


def close(name: str, options: dict[str, Any], wanted: list[Numbers]) -> None:
    for got, want in zip(trajectory(name, options), wanted, strict=True):
        assert got.tolist() == pytest.approx(want, rel=0, abs=1e-10)


@pytest.mark.parametrize(
    "options",
    [{}, {"centered": True}, {"momentum": 0.9}, {"alpha": 0.8, "eps": 1e-2, "weight_decay": 0.3, "centered": True}],
)
def test_rmsprop_is_torchs(options: dict[str, Any]) -> None:
    theirs = torch_trajectory(lambda p: torch.optim.RMSprop(p, lr=0.05, **options))
    for ours, wanted in zip(trajectory("rmsprop", {"lr": 0.05, **options}), theirs, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)


def test_madgrad() -> None:
    lr, momentum, eps, decay = 0.05, 0.8, 1e-3, 0.1
    x0 = x = START.tolist()
    s, v, points = [0.0] * 4, [0.0] * 4, []
    for t in range(STEPS):
        g, weight, new = slopes(x, t), lr * math.sqrt(t + 1), []
        for j in range(4):
            gj = g[j] + decay * x[j]
            s[j] += weight * gj
            v[j] += weight * gj**2
            z = x0[j] - s[j] / (v[j] ** (1 / 3) + eps)
            new.append(momentum * x[j] + (1 - momentum) * z)
        x = new
        points.append(x)
    close("madgrad", {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": decay}, points)


def test_adam_sania() -> None:
    lr, b1, b2, eps, decay = 0.01, 0.8, 0.9, 1e-3, 0.2
    x, m, v, points = START.tolist(), [0.0] * 4, [0.0] * 4, []
    for t in range(STEPS):
        g = slopes(x, t)
        for j in range(4):
            m[j] = b1 * m[j] + (1 - b1) * g[j]
            v[j] = b2 * v[j] + (1 - b2) * g[j] ** 2
            hat = m[j] / (1 - b1 ** (t + 1)) / (v[j] / (1 - b2 ** (t + 1)) + eps)
            x[j] = (1 - lr * decay) * x[j] - lr * hat
        points.append(list(x))
    close("adam_sania", {"lr": lr, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": decay}, points)


def test_lion() -> None:
    lr, b1, b2, decay = 0.02, 0.8, 0.95, 0.3
    x, m, points = START.tolist(), [0.0] * 4, []
    for t in range(STEPS):
        g = slopes(x, t)
        for j in range(4):
            x[j] = (1 - lr * decay) * x[j] - lr * sign(b1 * m[j] + (1 - b1) * g[j])
            m[j] = b2 * m[j] + (1 - b2) * g[j]
        points.append(list(x))
    close("lion", {"lr": lr, "beta1": b1, "beta2": b2, "weight_decay": decay}, points)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_signum(beta: float) -> None:
    lr, decay = 0.02, 0.3
    x, m, points = START.tolist(), [0.0] * 4, []
    for t in range(STEPS):
        g = slopes(x, t)
        for j in range(4):
            m[j] = beta * m[j] + (1 - beta) * g[j]
            x[j] = (1 - lr * decay) * x[j] - lr * sign(m[j])
        points.append(list(x))
    close("signum", {"lr": lr, "momentum": beta, "weight_decay": decay}, points)
    assert bool(build("signum", {"momentum": beta}).init({"x": START})) == (beta > 0)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_normalised_sgd(beta: float, nesterov: bool) -> None:
    lr, decay = 0.05, 0.3
    x, m, points = START.tolist(), [0.0] * 4, []
    for t in range(STEPS):
        g = slopes(x, t)
        m = [beta * m[j] + (1 - beta) * g[j] for j in range(4)]
        u = [beta * m[j] + (1 - beta) * g[j] if nesterov and beta else m[j] for j in range(4)]
        size = math.sqrt(sum(uj**2 for uj in u))
        x = [(1 - lr * decay) * x[j] - lr * u[j] / size for j in range(4)]
        points.append(x)
    close("normalised_sgd", {"lr": lr, "momentum": beta, "nesterov": nesterov, "weight_decay": decay}, points)


def test_one_norm_over_all_tensors() -> None:
    params = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    optimizer = build("normalised_sgd", {"lr": 1.0, "momentum": 0.0, "over": "all"})
    new, _ = optimizer.update(params, optimizer.init(params), params, hyper(optimizer, 0))
    torch.testing.assert_close(torch.stack([new["a"][0], new["b"][0, 0]]), torch.tensor([2.4, 3.2]))


def test_prodigy() -> None:
    lr, b1, b2, eps, decay, d = 0.5, 0.8, 0.9, 1e-4, 0.1, 1e-3
    x0, x, m, v, s, r, points = START.tolist(), START.tolist(), [0.0] * 4, [0.0] * 4, [0.0] * 4, 0.0, []
    root, found = math.sqrt(b2), [d]
    for t in range(STEPS):
        g = slopes(x, t)
        r = root * r + (1 - root) * lr * d**2 * sum(g[j] * (x0[j] - x[j]) for j in range(4))
        for j in range(4):
            m[j] = b1 * m[j] + (1 - b1) * d * g[j]
            v[j] = b2 * v[j] + (1 - b2) * (d * g[j]) ** 2
            s[j] = root * s[j] + (1 - root) * lr * d**2 * g[j]
            x[j] = (1 - lr * decay) * x[j] - lr * d * m[j] / (math.sqrt(v[j]) + d * eps)
        d = max(d, r / sum(abs(sj) for sj in s))
        found.append(d)
        points.append(list(x))
    assert found[-1] > 10 * found[0]
    close("prodigy", {"lr": lr, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": decay, "d0": 1e-3}, points)


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_schedule_free(base: str) -> None:
    lr, b1, b2, eps, decay, warmup = 0.02, 0.8, 0.9, 1e-3, 0.1, 5
    x, z, v, total, points = START.tolist(), START.tolist(), [0.0] * 4, 0.0, []
    for t in range(STEPS):
        y = [(1 - b1) * z[j] + b1 * x[j] for j in range(4)]
        g, rate = slopes(y, t), lr * min(1.0, (t + 1) / warmup)
        total += rate**2
        c = rate**2 / total
        for j in range(4):
            v[j] = b2 * v[j] + (1 - b2) * g[j] ** 2
            u = g[j] / (math.sqrt(v[j] / (1 - b2 ** (t + 1))) + eps) if base == "adamw" else g[j]
            z[j] -= rate * u + rate * decay * y[j]
            x[j] = (1 - c) * x[j] + c * z[j]
        points.append(list(x))
    options = {"lr": lr, "base": base, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": decay, "warmup": warmup}
    optimizer, params = build("schedule_free", options), {"x": START}
    state = optimizer.init(params)
    for t in range(STEPS):

        def oracle(at: Named, t: int = t) -> tuple[Named, torch.Tensor]:
            return {"x": gradient(at["x"], t)}, torch.zeros(())

        params, state, _, _ = advance(optimizer, oracle, state, params, hyper(optimizer, t))
        assert params["x"].tolist() == pytest.approx(points[t], rel=0, abs=1e-10)
