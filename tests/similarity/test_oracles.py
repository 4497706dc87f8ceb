"""Each method against a plain loop on matrices, and what methods have to have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedopt import keys, models
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.setup import Setup
from fedopt.testing.strategies import compose, small_federation, small_problem
from fedopt.testing.strategies import play as play_strategy
from tests.similarity.quadratics import Run, experiment, groups, nodes, play

Array = np.ndarray
MU = 0.1


class Known:
    """The quadratics of a setup as matrices, and proximal steps on the server's."""

    def __init__(self, setup: Setup) -> None:
        data = setup.problem.data
        samples = data.splits["train"].x.numpy()
        self.nodes = [(s[:, :-1], s[:, -1]) for s in samples]
        own = [split.x[0].numpy() for name, split in sorted(data.server.items(), key=lambda kv: kv[0] == "rare")]
        self.own = [(s[:, :-1], s[:, -1]) for s in own]
        self.d = samples.shape[1]
        self.zero = np.zeros(self.d)

    def gradient(self, m: int, x: Array) -> Array:
        a, b = self.nodes[m]
        return a @ x - b

    def mean(self, x: Array) -> Array:
        return np.mean([self.gradient(m, x) for m in range(len(self.nodes))], axis=0)

    def total(self, x: Array) -> Array:
        return np.sum([self.gradient(m, x) for m in range(len(self.nodes))], axis=0)

    def home(self, x: Array) -> Array:
        return np.sum([a @ x - b for a, b in self.own], axis=0)

    def prox(self, t: Array, centre: Array, theta: float) -> Array:
        """argmin ⟨t, x - centre⟩ + ‖x - centre‖²/(2θ) + h_1(x)"""
        a, b = (np.sum([s[i] for s in self.own], axis=0) for i in (0, 1))
        return np.linalg.solve(a + np.eye(self.d) / theta, centre / theta - t + b)


def of(run: Run) -> Array:
    return run.state.params.numpy()


def agree(run: Run, wanted: Array) -> None:
    np.testing.assert_allclose(of(run), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def aeg_by_hand(h: Known, delta: float, iterations: int, gradient: Callable[[Array], Array]) -> Array:
    tau = min(1, math.sqrt(MU) / (2 * math.sqrt(delta)))
    theta, eta = 1 / (2 * delta), min(1 / (2 * MU), 1 / (2 * math.sqrt(MU * delta)))
    x = x_f = h.zero
    for _ in range(iterations):
        x_g = tau * x + (1 - tau) * x_f
        x_f = h.prox(gradient(x_g) - h.home(x_g), x_g, theta)
        x = x + eta * MU * (x_f - x) - eta * gradient(x_f)
    return x_f


def test_aeg() -> None:
    setup = nodes("aeg")
    h = Known(setup)
    agree(play(setup, rounds=20), aeg_by_hand(h, 2.07, 10, h.mean))


def test_joint_aeg_is_sc_aeg_that_asks_both() -> None:
    setup = groups("aeg", 0.5, 2.0)
    h = Known(setup)
    wanted = aeg_by_hand(h, 2.5, 8, h.total)
    agree(play(setup, rounds=32), wanted)
    agree(play(groups("sc_aeg", 0.5, 2.0, both=True, factor=1.0), rounds=32), wanted)


def test_aseg_of_everybody_without_noise_is_aeg_bit_by_bit() -> None:
    aeg, aseg = play(nodes("aeg"), rounds=21), play(nodes("aseg", take=20), rounds=21)
    assert torch.equal(aeg.state.params, aseg.state.params)
    noisy = play(nodes("aseg", noise=1e-3), rounds=21)
    assert not torch.equal(aeg.state.params, noisy.state.params)


def test_agd() -> None:
    setup = nodes("agd")
    h, x, y = Known(setup), 0.0, 0.0
    x = y = h.zero
    beta = (1 - math.sqrt(MU / 100)) / (1 + math.sqrt(MU / 100))
    for _ in range(15):
        x_new = y - h.mean(y) / 100
        x, y = x_new, x_new + beta * (x_new - x)
    agree(play(setup, rounds=15), x)


def test_proximal_steps_at_the_server() -> None:
    setup = nodes("proxy_prox")
    h = Known(setup)
    x = h.zero
    for _ in range(7):
        x = h.prox(h.mean(x) - h.home(x), x, 1 / 2.07)
    agree(play(setup, rounds=7), x)


def test_c_aeg() -> None:
    d_f, d_g = 0.5, 8.0
    setup = groups("c_aeg", d_f, d_g)
    h = Known(setup)
    own = [lambda x, i=i: h.own[i][0] @ x - h.own[i][1] for i in range(2)]

    def numbers(mu: float, size: float) -> tuple[float, float, float]:
        return (
            min(1, 0.5 * math.sqrt(mu / size)),
            1 / (2 * size),
            min(1 / (2 * mu), 1 / (2 * math.sqrt(mu * size))),
        )

    tau, theta, eta = numbers(MU, d_f)
    mu_in = d_f + MU
    tau_in, theta_in, eta_in = numbers(mu_in, d_g)
    x = x_f = h.zero
    f_rounds = g_rounds = 0
    a_home, b_home = (np.sum([s[i] for s in h.own], axis=0) for i in (0, 1))
    for _ in range(4):
        x_g = tau * x + (1 - tau) * x_f
        t = h.gradient(0, x_g) - own[0](x_g)
        f_rounds += 1
        v = v_f = x_g
        while True:
            y = tau_in * v + (1 - tau_in) * v_f
            t_in = h.gradient(1, y) - own[1](y)
            # server part of the inner method: ⟨t, ·⟩ + ‖· - x_g‖²/(2θ) + h_1
            left = a_home + np.eye(h.d) * (1 / theta + 1 / theta_in)
            v_f = np.linalg.solve(left, b_home - t - t_in + x_g / theta + y / theta_in)
            slope = t + (v_f - x_g) / theta + own[0](v_f) + h.gradient(1, v_f)
            g_rounds += 2
            if np.linalg.norm(slope) <= 0.3 * d_f * np.linalg.norm(v_f - x_g):
                break
            v = v + eta_in * mu_in * (v_f - v) - eta_in * slope
        x_f = v_f
        x = x + eta * MU * (x_f - x) - eta * (h.gradient(0, x_f) + h.gradient(1, x_f))
        f_rounds += 1
    run = play(setup, rounds=f_rounds + g_rounds)
    assert (run.state.counted.rounds_f, run.state.counted.rounds_g) == (f_rounds, g_rounds)
    agree(run, x_f)


def test_hasca_with_a_period() -> None:
    setup = groups("hasca", 0.5, 2.0, period=3)
    h = Known(setup)
    own = [lambda x, i=i: h.own[i][0] @ x - h.own[i][1] for i in range(2)]
    x = w = h.zero
    rounds = 1
    for k in range(1, 8):
        at = h.gradient(0, w) - own[0](w) + h.gradient(1, x) - own[1](x)
        x = h.prox(at, x, 1 / (2 * 2.0))
        rounds += 1
        if k % 3 == 0 and k < 7:
            w, rounds = x, rounds + 1
    agree(play(setup, rounds=rounds), x)


@pytest.mark.parametrize("name", ["svrs", "acc_svrs", "olga", "ef_olga"])
def test_epochs_of_one_step(name: str) -> None:
    """One client, or p = 1: an epoch is a proximal step from its anchor, plain or coupled."""
    single = {"nodes": 1} if "svrs" in name else {"nodes": 4}
    options: dict[str, Any] = {} if "svrs" in name else {"probability": 1.0}
    theta = 0.2
    compression = {"name": "none", "feedback": "ef14"} if name == "ef_olga" else None
    setup = experiment(
        {"name": name, "mu": MU, "delta": 2.0, "theta": theta, **options}, {"kind": "nodes", **single}, compression
    )
    h = Known(setup)
    k = {"svrs": None, "acc_svrs": 4.0, "olga": 4.0, "ef_olga": 18.0}[name]
    y = z = h.zero
    for _ in range(6):
        if k is None:
            y = h.prox(h.mean(y) - h.home(y), y, theta)
            continue
        tau = min(math.sqrt(MU * theta) / k, 1 / k)
        alpha = theta / (2 * k * tau)
        x = tau * z + (1 - tau) * y
        y = h.prox(h.mean(x) - h.home(x), x, theta)
        g = (h.home(x) - h.mean(x)) - (h.home(y) - h.mean(y)) + (x - y) / theta
        z = (z / alpha + MU * y - g) / (1 / alpha + MU)
    run = play(setup, rounds=6 * (2 if k is None else 3))
    agree(run, y)
    if name == "ef_olga":
        assert run.state.own.epochs == 6


def test_what_compression_kept_back_is_made_up_for() -> None:
    """Over an epoch, what was sent and what clients tell at its end make up the differences."""
    setup = experiment(
        {"name": "ef_olga", "mu": MU, "delta": 2.0, "theta": 0.1, "probability": 0.2},
        {"kind": "nodes", "nodes": 3},
        {"name": "topk", "share": 0.1, "feedback": "ef14"},
    )
    run = play(setup, rounds=400)
    assert run.state.own.epochs > 5
    assert run.gap < 1.0


@pytest.mark.parametrize("name", ["dane", "s_dane"])
def test_clients_solve_corrected_problems(name: str) -> None:
    setup = nodes(name, rho=3.0, passes=60)
    h = Known(setup)
    x = h.zero
    for _ in range(4):
        at = h.mean(x)
        x = np.mean(
            [np.linalg.solve(a + 3.0 * np.eye(h.d), a @ x - at + 3.0 * x) for a, b in h.nodes], axis=0
        )  # b of the client's gradient and of its correction cancel
    agree(play(setup, rounds=8), x)


def test_clients_solve_problems_that_are_not_quadratic() -> None:
    """Softmax regression on ragged clients: conjugate gradients against Newton's method on each client's samples."""
    data = small_federation((7, 5, 9), dtype=torch.float64)
    module = models.build(
        "logistic", {}, inputs=(5,), classes=3, vocabulary=None, key=keys.root(2), dtype=torch.float64
    )
    problem = small_problem(data, module)
    made = compose("dane", l2=0.1, delta=1.0, rho=0.5, passes=80)
    train, spec = data.splits["train"], problem.network.spec

    def loss(v: torch.Tensor, m: int) -> torch.Tensor:
        rows = train.index[train.offsets[m] : train.offsets[m + 1]]
        held = slice(int(train.offsets[m]), int(train.offsets[m + 1]))
        weights = spec.unflatten(v)
        out = train.x[rows] @ weights[spec.names[0]].T + weights[spec.names[1]]
        return torch.nn.functional.cross_entropy(out, train.y[held])

    def gradient(v: torch.Tensor, m: int) -> torch.Tensor:
        return torch.autograd.functional.jacobian(lambda v: loss(v, m), v)

    x = problem.initial["params"]
    for _ in range(2):
        mean, moved = sum(gradient(x, m) for m in range(3)) / 3, []
        for m in range(3):
            v, at_x = x, gradient(x, m)
            for _ in range(12):
                slope = gradient(v, m) + 0.1 * v + mean - at_x + 0.5 * (v - x)
                curved = torch.autograd.functional.hessian(lambda v, m=m: loss(v, m), v)
                v = v - torch.linalg.solve(curved + 0.6 * torch.eye(problem.d, dtype=torch.float64), slope)
            moved.append(v)
        x = torch.stack(moved).mean(dim=0)
    for executor in (Serial(), Stacked()):
        got = play_strategy(problem, made, 4, executor=executor).state.params
        torch.testing.assert_close(got, x, rtol=0, atol=1e-8)


def test_a_group_that_the_server_knows_is_of_no_use() -> None:
    """With g_1 = g, the estimates of VRCS that ask g are zero: x moves by what f tells alone."""
    setup = groups("vrcs", 0.5, 1.0)
    data = setup.problem.data
    server = {**data.server, "rare": data.server["rare"]._replace(x=data.splits["train"].x[1:])}
    setup = setup._replace(problem=setup.problem._replace(data=data._replace(server=server)))
    from fedopt.similarity import asking
    from fedopt.similarity.asking import Answer

    setting = asking._setting(setup.strategy, setup.problem, setup.strategy.init(setup.problem, torch.tensor(1)))
    for x in torch.randn(3, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        a, b = data.splits["train"].x[1, :, :-1], data.splits["train"].x[1, :, -1]
        assert setting.difference("g", x, Answer(a @ x - b, x[:0])).abs().max() < 1e-12
