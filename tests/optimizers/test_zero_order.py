"""Methods by values of the function: estimates, JAGUAR, learnt directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import Values, advance, build, hyper
from fedopt.optimizers.directions.gaussian import gaussian, length, like
from fedopt.optimizers.directions.orthogonal import orthogonal
from fedopt.optimizers.directions.sphere import sphere
from fedopt.optimizers.ldsd import ldsd
from fedopt.registry import ConfigError
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import FedoptError, Named

Function = Callable[[Named], Tensor]


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def quadratic(d: int, seed: int = 0) -> tuple[Tensor, Tensor, Function]:
    """A, b and xᵀ A x / 2 - bᵀ x."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    a, b = root @ root.T / d, torch.randn(d, generator=generator, dtype=torch.float64)
    return a, b, lambda point: 0.5 * point["x"] @ a @ point["x"] - b @ point["x"]


def walk(
    name: str, options: dict[str, Any], function: Function, x: Tensor, steps: int, seed: int = 0
) -> tuple[Tensor, Any]:
    optimizer, params = build(name, options), {"x": x}
    state, h = optimizer.init(params), hyper(build(name, options), 0)
    for t in range(steps):
        values = Values(function, keys.fold(keys.root(seed), t))
        params, state, _, _ = advance(optimizer, lambda p: (p, p["x"]), state, params, h, values=values)
    return params["x"], state


@pytest.mark.parametrize(("tau", "error"), [(10.0, 1e-12), (1.0, 1e-12), (1e-3, 1e-9)])
def test_jaguar_finds_the_gradient_of_a_quadratic_coordinate_by_coordinate(tau: float, error: float) -> None:
    """x stays where it is, β = 0: whatever τ is, each entry that was visited is exact."""
    d = 30
    a, b, f = quadratic(d)
    x = torch.linspace(-1, 1, d, dtype=torch.float64)
    _, state = walk("jaguar", {"lr": 0.0, "beta": 0.0, "tau": tau, "block": "entry"}, f, x, 400)
    wanted, m = a @ x - b, state["m"]["x"]
    assert (m != 0).sum() > d - 3
    assert float((m - wanted)[m != 0].abs().max()) < error


def test_momentum_by_visits() -> None:
    """m_i = (1 - β^c) ∂f/∂x_i after c visits."""
    d, beta = 4, 0.7
    a, b, f = quadratic(d)
    x = torch.ones(d, dtype=torch.float64)
    optimizer: Any = build("jaguar", {"lr": 0.0, "beta": beta, "block": "entry"})
    visits = torch.zeros(d)
    for t in range(25):
        visits += optimizer.chosen(keys.fold(keys.root(0), t), {"x": x})["x"]
    _, state = walk("jaguar", {"lr": 0.0, "beta": beta, "block": "entry"}, f, x, 25)
    assert visits.sum() == 25
    torch.testing.assert_close(state["m"]["x"], (1 - beta ** visits.double()) * (a @ x - b), rtol=0, atol=1e-9)


def test_uniform_coordinates_take_a_coupon_collectors_time() -> None:
    d, draws = 20, []
    optimizer: Any = build("jaguar", {"block": "entry"})
    for seed in range(40):
        seen, t = torch.zeros(d), 0
        while float(seen.min()) == 0:
            seen += optimizer.chosen(keys.fold(keys.root(seed), t), {"x": torch.zeros(d)})["x"]
            t += 1
        draws.append(t)
    assert np.mean(draws) == pytest.approx(d * sum(1 / k for k in range(1, d + 1)), rel=0.15)


def test_blocks_of_a_linear_function() -> None:
    """ρ = Σ_(i in S) g_i, over a tenth of the rows times a tenth of the columns, and of a vector's entries."""
    params = {"w": torch.zeros(40, 30, dtype=torch.float64), "b": torch.zeros(50, dtype=torch.float64)}
    g = like(keys.root(3), params)
    optimizer: Any = build("jaguar", {"lr": 0.1, "beta": 0.0})
    key = keys.root(9)
    chosen = optimizer.chosen(key, params)
    assert int(chosen["w"].sum()) == 4 * 3 and int(chosen["b"].sum()) == 5

    def f(p: Named) -> Tensor:
        return torch.stack([(g[n] * p[n]).sum() for n in p]).sum()

    _, state = optimizer.update({}, optimizer.init(params), params, hyper(optimizer, 0), function=f, key=key)
    rho = sum(float((g[n] * chosen[n]).sum()) for n in g)
    for name, s in chosen.items():
        torch.testing.assert_close(state["m"][name], rho * s, rtol=0, atol=1e-9)


def test_the_released_memory_forgets_and_the_momentum_says_nothing() -> None:
    _a, _b, f = quadratic(12)
    x = torch.ones(12, dtype=torch.float64)
    released = [
        walk("jaguar", {"lr": 0.01, "beta": beta, "memory": "released"}, f, x, 30)[0] for beta in (0.0, 0.1, 0.9)
    ]
    assert torch.equal(released[0], released[1]) and torch.equal(released[0], released[2])
    kept = [walk("jaguar", {"lr": 0.01, "beta": beta}, f, x, 30)[0] for beta in (0.0, 0.9)]
    assert not torch.equal(kept[0], released[0]) and not torch.equal(kept[0], kept[1])
    assert "m" not in walk("jaguar", {"memory": "released"}, f, x, 1)[1]


def test_entries_that_were_never_visited_do_not_move() -> None:
    x = torch.ones(100, dtype=torch.float64)
    new, state = walk("jaguar", {"lr": 0.5, "block": "entry"}, lambda p: p["x"].sum(), x, 3)
    moved = new != x
    assert torch.equal(moved, state["m"]["x"] != 0) and 1 <= int(moved.sum()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "published"), [(0.0, 9.9), (0.9, 1.9), (1 - 20_000**-0.5, 3.0)])
def test_momentum_goes_below_the_floor_of_the_noise(beta: float, published: float) -> None:
    """f = Σ D_i x_i² / 2 and the gradient's noise N(0, 2² I), the same at both points; the mean ‖∇f‖₁ at the end."""
    d, steps = 20, 20_000
    curve = torch.linspace(0.5, 2.0, d, dtype=torch.float64)
    noise = np.random.default_rng(0)
    optimizer = build("jaguar", {"lr": 1e-4, "beta": beta, "block": "entry"})
    params, h, total = {"x": torch.ones(d, dtype=torch.float64)}, hyper(optimizer, 0), 0.0
    state = optimizer.init(params)
    for t in range(steps):
        xi = tensor(2.0 * noise.standard_normal(d))

        def f(p: Named, xi: Tensor = xi) -> Tensor:
            return 0.5 * (curve * p["x"] ** 2).sum() + xi @ p["x"]

        params, state = optimizer.update({}, state, params, h, function=f, key=keys.fold(keys.root(0), t))
        if t >= 3 * steps // 4:
            total += float((curve * params["x"]).abs().sum()) / (steps // 4)
    assert total == pytest.approx(published, rel=0.35)


def test_the_error_of_normal_directions() -> None:
    """E ‖ĝ - ∇f‖² = (d + 1) ‖∇f‖² and E ĝ = ∇f; of directions of one length (d - 1)."""
    d, draws = 50, 20_000
    a, b, _f = quadratic(d)
    x = torch.ones(d, dtype=torch.float64)
    g = a @ x - b
    for kind, wanted in ((gaussian(), d + 1), (sphere(), d - 1)):
        z = torch.vmap(lambda key, kind=kind: kind.draw(key, {"x": x})["x"])(
            keys.fold(keys.root(1), torch.arange(draws))
        )
        estimates = (z @ g)[:, None] * z  # exact on a quadratic for any τ
        error = float((estimates - g).square().sum(1).mean() / g.square().sum())
        assert error == pytest.approx(wanted, rel=0.05)
        assert float((estimates.mean(0) - g).norm() / g.norm()) < 0.1


def test_both_forms_of_signs() -> None:
    _a, _b, f = quadratic(8)
    x = torch.ones(8, dtype=torch.float64)
    entry, _ = walk("zero_order", {"of": {"name": "signum", "lr": 0.1, "momentum": 0.0}}, f, x, 1)
    torch.testing.assert_close((entry - x).abs(), torch.full((8,), 0.1, dtype=torch.float64))
    whole, _ = walk("zero_order", {"of": {"name": "sgd", "lr": 0.1}, "sign": True}, f, x, 1)
    z = gaussian().draw(keys.fold(keys.fold(keys.root(0), 0), 0), {"x": x})["x"]
    torch.testing.assert_close((whole - x).abs(), 0.1 * z.abs())


def test_mezo_by_hand() -> None:
    _a, _b, f = quadratic(6)
    x = np.ones(6)
    new, state = walk("zero_order", {"of": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}, f, tensor(x), 12)
    buffer = np.zeros(6)
    for t in range(12):
        z = gaussian().draw(keys.fold(keys.fold(keys.root(0), t), 0), {"x": tensor(x)})["x"].numpy()
        up, down = (float(f({"x": tensor(x + s * 1e-3 * z)})) for s in (1, -1))
        buffer = 0.9 * buffer + (up - down) / 2e-3 * z
        x = x - 0.01 * buffer
    np.testing.assert_allclose(new.numpy(), x, rtol=0, atol=1e-10)
    assert float(state["evaluations"]) == 24


def test_a_share_of_the_layers() -> None:
    params = {str(i): torch.zeros(3) for i in range(10)}
    z = gaussian(layers=0.3).draw(keys.root(2), params)
    assert sum(bool(x.any()) for x in z.values()) == 3


def test_orthogonal_directions_are_what_muon_makes() -> None:
    params = {"w": torch.zeros(6, 4, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}
    z = orthogonal().draw(keys.root(1), params)
    torch.testing.assert_close(z["w"].T @ z["w"], torch.eye(4, dtype=torch.float64))
    assert set(z["b"].abs().tolist()) == {1.0}
    wide = orthogonal().draw(keys.root(1), {"w": torch.zeros(2, 5)})["w"]
    torch.testing.assert_close(wide @ wide.T, torch.eye(2))


# learnt directions


def test_the_policy_gradient_has_the_right_mean() -> None:
    """τ E ∇f(x + τ v), and (K - 1) / K of it with the mean as the baseline."""
    d, draws, tau, k = 20, 20_000, 0.1, 5
    a, b, f = quadratic(d)
    x, mu = torch.ones(d, dtype=torch.float64), torch.linspace(-1, 1, d, dtype=torch.float64)
    found = {}
    for baseline in ("others", "mean"):
        method = ldsd(baseline=baseline, candidates=k)  # type: ignore[arg-type]

        def one(word: Tensor, method: ldsd = method) -> Tensor:
            words = [keys.fold(word, i) for i in range(k)]
            params, state = {"x": x}, {"mu": {"x": mu}}
            seen = {"x": torch.ones((), dtype=torch.float64)}
            values = torch.stack([f({"x": x + tau * method._drawn(w, state, params, seen)["x"]}) for w in words])
            return method.policy_gradient(values, words, state, params, seen)["x"]

        found[baseline] = torch.vmap(one)(keys.fold(keys.root(4), torch.arange(draws))).mean(0)
    wanted = tau * (a @ (x + tau * mu) - b)
    cosine = float(found["others"] @ wanted / found["others"].norm() / wanted.norm())
    assert cosine > 0.999 and float(found["others"].norm() / wanted.norm()) == pytest.approx(1.0, abs=0.02)
    assert float(found["mean"].norm() / found["others"].norm()) == pytest.approx(0.8, abs=1e-3)


def test_how_well_directions_are_aligned() -> None:
    """E cos²(v, g) for a mean in the direction of g, and for the best of five."""
    d, draws = 100, 20_000
    g = torch.zeros(d, dtype=torch.float64)
    g[0] = 1.0
    noise = torch.randn(draws, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.eye(d, dtype=torch.float64)[1]
    for size, wanted in ((0.0, 0.0100), (1.0, 0.0164), (3.0, 0.0645), (10.0, 0.344), (30.0, 0.614)):
        v = size * (math.cos(0.6) * g + math.sin(0.6) * other) + noise
        assert float(((v @ g) ** 2 / v.square().sum(1)).mean()) == pytest.approx(wanted, rel=0.05)
    five = noise[: 5 * (draws // 5), :12].reshape(-1, 5, 12)
    best = five[torch.arange(len(five)), five[:, :, 0].argmin(1)]
    assert float((best[:, 0] ** 2 / best.square().sum(1)).mean()) == pytest.approx(0.142, abs=0.01)


def test_a_linear_function_moves_the_mean_by_its_gradient() -> None:
    """E μ_t = -μ_lr t g, x frozen."""
    d, steps = 5, 4
    g = torch.linspace(1, 2, d, dtype=torch.float64)
    options = {"of": {"name": "sgd", "lr": 0.0}, "mu_lr": 0.01}
    optimizer = build("ldsd", options)

    def mean_of(seed: Tensor) -> Tensor:
        params = {"x": torch.zeros(d, dtype=torch.float64)}
        state, h = optimizer.init(params), hyper(optimizer, 0)
        for t in range(steps):
            params, state = optimizer.update(
                {}, state, params, h, function=lambda p: g @ p["x"], key=keys.fold(seed, t)
            )
        found: Tensor = state["mu"]["x"]
        return found

    mu = torch.vmap(mean_of)(keys.fold(keys.root(7), torch.arange(20_000)))
    torch.testing.assert_close(mu.mean(0), -0.01 * steps * g, rtol=0.03, atol=0)


def test_one_candidate_is_two_points_around_the_mean() -> None:
    _a, _b, f = quadratic(6)
    x = torch.ones(6, dtype=torch.float64)
    new, state = walk("ldsd", {"of": {"name": "sgd", "lr": 0.01}, "candidates": 1}, f, x, 3)
    assert not state["mu"]["x"].any()
    y = x
    for t in range(3):
        v = like(keys.fold(keys.fold(keys.root(0), t), 0), {"x": y})["x"]
        rho = (f({"x": y + 1e-3 * v}) - f({"x": y - 1e-3 * v})) / 2e-3
        y = y - 0.01 * rho * v
    torch.testing.assert_close(new, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("reevaluate", "each"), [(False, 6), (True, 7)])
def test_evaluations_are_counted(reevaluate: bool, each: int) -> None:
    calls = []

    def f(p: Named) -> Tensor:
        calls.append(1)
        return p["x"].square().sum()

    options = {"of": {"name": "sgd", "lr": 0.01}, "reevaluate": reevaluate}
    _, state = walk("ldsd", options, f, torch.ones(3, dtype=torch.float64), 4)
    assert float(state["evaluations"]) == len(calls) == 4 * each


@pytest.mark.slow
@pytest.mark.parametrize(("learn", "published"), [(True, 6.9e-3), (False, 1.2e-2)])
def test_the_quadratic_of_the_page(learn: bool, published: float) -> None:
    """30,000 evaluations, the mean over five seeds."""
    curve = torch.logspace(-1, 1, 100, dtype=torch.float64)

    def f(p: Named) -> Tensor:
        return 0.5 * (curve * p["x"] ** 2).sum()

    x = torch.ones(100, dtype=torch.float64)
    assert float(f({"x": x})) == pytest.approx(108.96, abs=0.01)
    options = {"of": {"name": "sgd", "lr": 2e-3}, "mu_lr": 1e-3, "learn_mu": learn}
    ends = [float(f({"x": walk("ldsd", options, f, x, 5_000, seed)[0]})) for seed in range(5)]
    assert np.mean(ends) == pytest.approx(published, rel=1.0)


def test_clients_learn_by_values() -> None:
    federation = small_federation((8, 9, 10))
    of = small_problem(federation)
    for name, options in (
        ("zero_order", {"of": {"name": "sgd", "lr": 0.05}}),
        ("jaguar", {"lr": 0.05, "share": 0.5}),
        ("ldsd", {"of": {"name": "sgd", "lr": 0.05}}),
    ):
        played = play(of, compose("fedavg", optimizer=build(name, options)), 30)
        first, last = (float(played.steps[i].replies.metrics["loss"].mean()) for i in (0, -1))
        assert last < first - 0.05, name


def test_bad_input_by_message() -> None:
    for name in ("zero_order", "ldsd"):
        with pytest.raises(ConfigError, match="asks for more than a gradient"):
            build(name, {"of": {"name": "alias"}})
    of = small_problem(small_federation((8, 9)))
    with pytest.raises(FedoptError, match="knows values of the function alone"):
        play(of, compose("fedprox", optimizer=build("zero_order", {})), 1)


def test_lengths() -> None:
    z = sphere().draw(keys.root(0), {"a": torch.zeros(3, 2), "b": torch.zeros(4)})
    assert float(length(z)) == pytest.approx(math.sqrt(10), rel=1e-6)
