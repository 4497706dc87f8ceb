"""Clipped gradient descent: its parameters, what it bounds, and heavy tails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt.optimizers import build, hyper
from fedopt.optimizers.clip_sgd import Theory, chosen, clipped
from fedopt.registry import ConfigError

TABLE = [
    (0.1, 1.5, 2000, 0.0625, 5.33),
    (1.0, 1.2, 2000, 0.00689, 48.4),
    (1.0, 1.2, 8000, 0.00214, 156.0),
]


@pytest.mark.parametrize(("sigma", "alpha", "steps", "gamma", "threshold"), TABLE)
def test_parameters(sigma: float, alpha: float, steps: int, gamma: float, threshold: float) -> None:
    found = chosen(Theory(4.0, 3.0, 6.0, sigma, alpha, steps))
    assert found == (pytest.approx(gamma, rel=5e-3), pytest.approx(threshold, rel=5e-3))


def test_parameters_of_theory_and_limits() -> None:
    known = Theory(4.0, 3.0, 6.0, 0.1, 1.5, 2000)
    a = math.log(4 * 2001 / 0.01)
    gamma, threshold = chosen(known._replace(constants="theory"))
    wanted = min(1 / (320 * a), 6.0 / (20 * 27 ** (1 / 1.5) * 0.1 * 2001 ** (1 / 1.5) * a ** (0.5 / 1.5)))
    assert gamma == pytest.approx(wanted) and threshold == pytest.approx(min(6.0 / (40 * a), 1 / 3) / wanted)
    gamma, threshold = chosen(known._replace(l1=0.0))
    assert threshold == pytest.approx(6.0 / a / gamma)
    assert chosen(known._replace(sigma=0.0))[0] == 1 / 16


def step(options: dict[str, Any], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    optimizer, params = build("clip_sgd", options), {name: torch.zeros_like(g) for name, g in grads.items()}
    return optimizer.update(grads, optimizer.init(params), params, hyper(optimizer, 0))[0]


def test_a_step_is_never_longer_than_the_threshold_allows() -> None:
    for seed in range(20):
        grads = {n: 10.0 ** (seed % 5 - 2) * torch.randn(3, 2, dtype=torch.float64) for n in ("a", "b")}
        new = step({"lr": 0.5, "threshold": 0.3}, grads)
        length = math.sqrt(sum(float(x.square().sum()) for x in new.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        assert length == pytest.approx(0.5 * min(0.3, norm))
        for name, g in grads.items():  # one direction, over all tensors
            torch.testing.assert_close(new[name], -0.5 * min(1.0, 0.3 / norm) * g)


def test_without_a_threshold_it_is_gradient_descent_bit_for_bit() -> None:
    grads = {"a": torch.randn(5), "b": torch.randn(3)}
    sgd = build("sgd", {"lr": 0.1})
    zeros = {name: torch.zeros_like(g) for name, g in grads.items()}
    wanted, _ = sgd.update(grads, sgd.init(zeros), zeros, hyper(sgd, 0))
    for options in ({}, {"threshold": 1e9}):
        new = step({"lr": 0.1, **options}, grads)
        assert all(torch.equal(new[name], wanted[name]) for name in grads)


def test_zero_stays_zero_also_in_a_cohort() -> None:
    rows = torch.stack([torch.zeros(3), torch.ones(3)])
    got = torch.vmap(lambda g: clipped({"x": g}, torch.tensor(0.5))["x"])(rows)
    assert torch.equal(got[0], torch.zeros(3))
    assert float(got[1].norm()) == pytest.approx(0.5)


@pytest.mark.parametrize("after", [False, True])
def test_momentum_before_or_after(after: bool) -> None:
    optimizer = build("clip_sgd", {"lr": 1.0, "threshold": 1.0, "momentum": 0.5, "clip_momentum": after})
    x, state = {"x": torch.zeros(1)}, optimizer.init({"x": torch.zeros(1)})
    path = []
    for _ in range(3):
        x, state = optimizer.update({"x": torch.tensor([-2.0])}, state, x, hyper(optimizer, 0))
        path.append(float(x["x"]))
    assert path == pytest.approx([1.0, 2.0, 3.0] if after else [1.0, 2.5, 4.25])


def heavy(options: dict[str, Any], sigma: float, alpha: float, steps: int, trials: int = 200) -> tuple[Any, Any]:
    """f(x) = ‖x‖⁴ in 10 dimensions, x_0 = 6 e_1; noise of uniform direction, its length Pareto of index alpha + 0.1.

    f at the mean of the iterates, and at the last one, of every trial: `[trials]`.
    """
    rng, index = np.random.default_rng(0), alpha + 0.1
    scale = sigma / (index / (index - alpha)) ** (1 / alpha)  # E r^α = s^α index / (index - α)
    optimizer = build("clip_sgd", {**options, "average": True})
    h = hyper(optimizer, 0)
    start = torch.zeros(trials, 10, dtype=torch.float64)
    start[:, 0] = 6.0
    params, state = {"x": start}, torch.vmap(optimizer.init)({"x": start})
    move = torch.vmap(optimizer.update, in_dims=(0, 0, 0, None))
    for _ in range(steps):
        way = rng.standard_normal((trials, 10))
        length = scale * (1.0 - rng.random(trials)) ** (-1 / index)
        noise = torch.tensor(way / np.linalg.norm(way, axis=1, keepdims=True) * length[:, None])
        x = params["x"]
        slope = 4.0 * x.square().sum(dim=1, keepdim=True) * x
        params, state = move({"x": slope + noise}, state, params, h)

    def f(x: Tensor) -> Any:
        return x.square().sum(dim=1).square().numpy()

    return f(state["average"]["x"]), f(params["x"])


@pytest.mark.parametrize(
    ("row", "mean", "last"),
    [
        (TABLE[0], (3.8e-5, 8.4e-5, 1.0e-4), (3.5e-5, 1.5e-4, 2.5e-4)),
        pytest.param(TABLE[1], (1.5e-3, 2.9e-3, 3.9e-3), (1.1e-3, 5.2e-3, 9.6e-3), marks=pytest.mark.slow),
        pytest.param(TABLE[2], (7.3e-4, 1.6e-3, 1.7e-3), (8.5e-4, 4.5e-3, 8.2e-3), marks=pytest.mark.slow),
    ],
)
def test_heavy_tails(row: tuple[Any, ...], mean: tuple[float, ...], last: tuple[float, ...]) -> None:
    sigma, alpha, steps = row[:3]
    known = {"l0": 4.0, "l1": 3.0, "r0": 6.0, "sigma": sigma, "alpha": alpha, "steps": steps}
    average, end = heavy({"theory": known}, sigma, alpha, steps)
    for found, wanted in ((average, mean), (end, last)):
        # the 99 % quantile of 200 trials is its second largest
        for q, number, factor in zip((0.5, 0.95, 0.99), wanted, (1.5, 1.5, 2.5), strict=True):
            assert number / factor <= np.quantile(found, q) <= number * factor, (q, np.quantile(found, q))
    assert np.quantile(average, 0.99) / np.median(average) <= (3.0 if row is TABLE[0] else 3.5)


def test_without_clipping_the_same_step_diverges() -> None:
    gamma, _ = chosen(Theory(4.0, 3.0, 6.0, 0.1, 1.5, 2000))
    _, end = heavy({"lr": gamma}, 0.1, 1.5, 30, trials=20)
    assert not np.isfinite(end).any()


def test_without_noise_the_classical_threshold_is_enough() -> None:
    """λ of the order of L_0/L_1: (L_1 R_0)² and L_0 R_0² / ε iterations."""
    _, end = heavy({"lr": 1 / 16, "threshold": 4.0}, 0.0, 1.5, 400, trials=2)
    assert end.max() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "theory": {"l0": 1, "l1": 1, "r0": 1, "sigma": 1, "alpha": 1.5, "steps": 10}}, "come from theory"),
        ({"theory": {"l0": 1, "l1": 1, "r0": 1, "sigma": 1, "alpha": 2.5, "steps": 10}}, "alpha"),
        ({"lr": 0.1, "threshold": -1.0}, "threshold"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("clip_sgd", options)
