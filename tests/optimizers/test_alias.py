"""ALIAS on the logistic regression of its page, and against loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt.optimizers import advance, build, hyper
from fedopt.registry import ConfigError
from fedopt.types import Named

TORCH = torch.float64


class Logistic:
    """f = mean log(1 + exp(-y Xx)) + (λ/2) ‖x‖², started at all ones."""

    def __init__(self, n: int = 400, d: int = 40, lam: float = 1e-3) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d)) * np.exp(rng.standard_normal(d))
        w = rng.standard_normal(d)
        self.a = torch.tensor(x * np.sign(x @ w + 0.5 * rng.standard_normal(n))[:, None])
        self.lam, self.start = lam, torch.ones(d, dtype=TORCH)

    def __call__(self, point: Named) -> tuple[Named, Tensor]:
        x = point["x"]
        z = self.a @ x
        slope = -(self.a.T @ torch.sigmoid(-z)) / len(z) + self.lam * x
        return {"x": slope}, torch.nn.functional.softplus(-z).mean() + 0.5 * self.lam * x @ x

    @property
    def least(self) -> float:
        x = self.start.clone().requires_grad_()
        solver = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            grads, value = self({"x": x.detach()})
            x.grad = grads["x"]
            return value

        solver.step(closure)
        return float(self({"x": x.detach()})[1])


PROBLEM = Logistic()


def run(options: dict[str, Any], steps: int, name: str = "alias", problem: Any = PROBLEM) -> tuple[float, list[Any]]:
    """(mean ‖∇f‖₁, states)"""
    optimizer, params = build(name, options), {"x": problem.start}
    state, total, states, h = optimizer.init(params), 0.0, [], hyper(build(name, options), 0)
    for _ in range(steps):
        params, state, grads, _ = advance(optimizer, problem, state, params, h)
        total += float(grads["x"].abs().sum())
        states.append((params, state))
    return total / steps, states


def test_the_problem_is_the_one_of_the_page() -> None:
    assert PROBLEM.least == pytest.approx(0.07148, abs=1e-5)
    assert float(PROBLEM({"x": PROBLEM.start})[1]) - PROBLEM.least == pytest.approx(2.859, abs=1e-3)


SECOND = [(1e-2, 0.119, 0.548), (1.0, 0.099, 0.331), (1e2, 0.104, 0.367), (1e4, 0.132, 0.906)]
FIRST = [(1e-8, 0.085, 0.350), (1e-6, 0.085, 0.333), (1e-4, 0.083, 0.326), (1e-2, 0.077, 0.286), (1.0, 0.061, 0.225)]
LONG = pytest.param(2000, marks=pytest.mark.slow)


@pytest.mark.parametrize("steps", [200, LONG])
@pytest.mark.parametrize(("eta", "long", "short"), SECOND)
def test_option_two(eta: float, long: float, short: float, steps: int) -> None:
    found, _ = run({"option": "II", "eta_0": eta}, steps)
    assert found == pytest.approx(long if steps == 2000 else short, abs=0.002)


@pytest.mark.parametrize("steps", [200, LONG])
@pytest.mark.parametrize(("d", "long", "short"), FIRST)
def test_option_one(d: float, long: float, short: float, steps: int) -> None:
    found, _ = run({"option": "I", "eta_0": 1.0, "d_0": d}, steps)
    assert found == pytest.approx(long if steps == 2000 else short, abs=0.002)


def test_a_first_guess_that_is_too_large_is_not_taken_back() -> None:
    assert run({"option": "I", "eta_0": 1.0, "d_0": 100.0}, 200)[0] == pytest.approx(0.87, abs=0.01)


@pytest.mark.slow
def test_nothing_is_to_be_tuned() -> None:
    """Over 8 orders of d_0 and 6 of eta_0, a factor of 2 of the best constant step at most."""
    tuned = min(run({"lr": 0.0158 * 10 ** (k / 4), "momentum": 0.0}, 2000, "signum")[0] for k in range(-4, 5))
    assert tuned == pytest.approx(0.143, abs=0.01)
    found = [run({"option": "I", "eta_0": 1.0, "d_0": 10.0**k}, 2000)[0] for k in range(-8, 1)]
    found += [run({"option": "II", "eta_0": 10.0**k}, 2000)[0] for k in range(-2, 5)]
    assert max(found) <= 2.0 * tuned


def test_against_a_loop() -> None:
    """Option I with the gradients of one sample set: plain numbers."""
    x, g_old, h, d, seen, gamma = PROBLEM.start.numpy(), None, 1.0, 1e-6, 0.0, 0.0
    _, states = run({"option": "I", "eta_0": 1.0}, 40)
    for params, _ in states:
        g = PROBLEM({"x": torch.tensor(x)})[0]["x"].numpy()
        if g_old is not None:
            h += sum(abs(a - b) for a, b in zip(g, g_old, strict=True)) / gamma
            seen += gamma * sum(a * np.sign(b) for a, b in zip(g, g_old, strict=True))
            d = max(d, seen)
        gamma = math.sqrt(d / h)
        x, g_old = x - gamma * np.sign(g), g
        np.testing.assert_allclose(params["x"].numpy(), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("gap", "warm", "decay", "same"), [(1, 0, 0.3, True), (4, 0, 0.0, True), (3, 5, 0.1, False), (1, 3, 0.0, True)]
)
def test_gaps_warm_up_and_true_distances_against_a_loop(gap: int, warm: int, decay: float, same: bool) -> None:
    options = {
        "eta_0": 1.0, "update_gap": gap, "warmup_steps": warm, "warmup_lr": 0.02, "weight_decay": decay,
        "true_distance": True, "same_sample": same,
    }  # fmt: skip
    _, states = run(options, 30)
    x, h, gamma, d = PROBLEM.start.numpy(), 1.0, 0.0, 0.0
    old: Any = None
    for t, (params, _) in enumerate(states):
        grads, value = PROBLEM({"x": torch.tensor(x)})
        g = grads["x"].numpy()
        if t == 0:
            d = float(value)
        if t % gap == 0:
            if old is not None:
                h += np.abs(g - old[1]).sum() / np.abs(x - old[0]).max()
            old = (x, g)
            fresh = math.sqrt(d / h)
        gamma = 0.02 if t < warm else fresh if t % gap == 0 else gamma
        x = (1 - gamma * decay) * x - gamma * np.sign(g)
        np.testing.assert_allclose(params["x"].numpy(), x, rtol=0, atol=1e-9)


def test_the_distance_is_never_above_the_gap_and_steps_shrink() -> None:
    gap = float(PROBLEM({"x": PROBLEM.start})[1]) - PROBLEM.least
    _, first = run({"option": "I", "eta_0": 1.0}, 300)
    assert all(float(state["numbers"]["all"]["d"]) <= gap for _, state in first)
    _, second = run({"option": "II"}, 100)
    gammas = [float(state["numbers"]["all"]["gamma"]) for _, state in second]
    assert gammas == sorted(gammas, reverse=True)


class Scaled:
    """c f, or f of x / a."""

    def __init__(self, c: float = 1.0, a: float = 1.0) -> None:
        self.c, self.a, self.start = c, a, PROBLEM.start * a

    def __call__(self, point: Named) -> tuple[Named, Tensor]:
        grads, value = PROBLEM({"x": point["x"] / self.a})
        return {"x": self.c * grads["x"] / self.a}, self.c * value


def test_scaling() -> None:
    for option in ("I", "II"):
        _, plain = run({"option": option, "eta_0": 2.0, "d_0": 1e-4}, 50)
        _, loud = run({"option": option, "eta_0": 14.0, "d_0": 7e-4}, 50, problem=Scaled(c=7.0))
        torch.testing.assert_close(plain[-1][0]["x"], loud[-1][0]["x"], rtol=0, atol=1e-9)
        _, wide = run({"option": option, "eta_0": 2.0 / 9.0, "d_0": 1e-4}, 50, problem=Scaled(a=3.0))
        torch.testing.assert_close(3.0 * plain[-1][0]["x"], wide[-1][0]["x"], rtol=0, atol=1e-9)


def test_the_swapped_norm_bounds_the_change_of_the_gradient() -> None:
    options = {"option": "I", "norm_swap": True, "same_sample": False, "eta_0": 1.0}
    _, states = run(options, 60)
    points = [PROBLEM.start, *(params["x"] for params, _ in states)]
    h = 1.0
    for t in range(1, 60):
        g, old = (PROBLEM({"x": points[i]})[0]["x"] for i in (t, t - 1))
        numbers = states[t][1]["numbers"]["all"]
        length = float((points[t] - points[t - 1]).abs().sum())
        rise = float(numbers["h"]) - h
        assert rise * length >= float((g - old).abs().max()) - 1e-9
        h = float(numbers["h"])
    assert "g" not in states[-1][1]


def test_a_cold_start_and_no_sign_at_all() -> None:
    optimizer, params = build("alias", {"option": "I", "eta_0": 0.0, "cold": 0.01}), {"x": torch.zeros(3)}
    state, h = optimizer.init(params), hyper(optimizer, 0)
    still = {"x": torch.zeros(3)}
    for _ in range(3):
        params, state = optimizer.update(still, state, params, h, before=still)
    assert torch.equal(params["x"], torch.zeros(3)) and float(state["numbers"]["all"]["h"]) == 0.0
    params, state = optimizer.update({"x": torch.ones(3)}, state, params, h, before=still)
    torch.testing.assert_close(params["x"], torch.full((3,), -0.01))


def test_of_another_batch_the_noise_shortens_steps() -> None:
    """h with gradients of different noise grows by the noise over γ; of the same sample it does not."""

    ends = {}
    for same in (True, False):
        optimizer, params = build("alias", {"option": "II", "eta_0": 1.0, "same_sample": same}), {"x": PROBLEM.start}
        state, h = optimizer.init(params), hyper(build("alias", {}), 0)
        for t in range(50):
            noise = 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(t), dtype=TORCH)

            def oracle(x: Named, noise: Tensor = noise) -> tuple[Named, Tensor]:
                grads, value = PROBLEM(x)
                return {"x": grads["x"] + noise}, value

            params, state, _, _ = advance(optimizer, oracle, state, params, h)
        ends[same] = float(state["numbers"]["all"]["gamma"])
    assert ends[False] < 0.5 * ends[True]


@pytest.mark.parametrize("form", ["vit", "llm"])
def test_alias_adam_against_a_loop(form: str) -> None:
    lr, b1, b2, eps, decay = 0.1, 0.9, 0.99, 1e-4, 0.1
    d = r = 1.0 if form == "llm" else 1e-3
    options = {"lr": lr, "beta2": b2, "eps": eps, "weight_decay": decay, "form": form, "d_0": d}
    r = r if form == "llm" else 0.0
    _, states = run({**options, "r_0": r}, 30, "alias_adam")
    x, m, v, old = PROBLEM.start.numpy(), np.zeros(40), np.zeros(40), np.zeros(40)
    for params, _ in states:
        g = PROBLEM({"x": torch.tensor(x)})[0]["x"].numpy()
        s = float(g @ np.sign(old)) if form == "vit" else float(np.abs(g) @ np.abs(old))
        r = math.sqrt(b2) * r + (1 - math.sqrt(b2)) * d * s
        d = max(d, r)
        m, v, old = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d**2 * g**2, g
        if form == "vit":
            x = (1 - lr * decay) * x - lr * d * m / (np.sqrt(v) + eps)
        else:
            x = (1 - lr * decay) * (x - lr * d * np.sqrt((m**2 + eps) / (v + eps)) * np.sign(m))
        np.testing.assert_allclose(params["x"].numpy(), x, rtol=0, atol=1e-10)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="set same_sample = false"):
        build("alias", {"norm_swap": True})
