"""ALSO: weights of groups, optimism, and what it is equal to in its limits."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt.optimizers import Grouped, advance, as_torch, build, hyper
from fedopt.optimizers.also import inverse_frequency, projection
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, Named

SGD = {"name": "sgd", "lr": 0.05}


def of_losses(losses: Any) -> Any:
    """A batch with one sample in each group, whose losses `[c]` are a function of θ."""

    def groups(point: Named, weights: Any) -> Grouped:
        theta = point["theta"].clone().requires_grad_()
        each = losses(theta)
        count = torch.tensor(float(len(each)), dtype=torch.float64)
        (slope,) = torch.autograd.grad((weights(count) * each).sum(), theta)
        return Grouped({"theta": slope}, each.detach().mean(), each.detach(), count)

    return groups


def walk(losses: Any, theta: float, steps: int, **options: Any) -> tuple[list[float], Tensor]:
    optimizer = build("also", options)
    params = {"theta": torch.tensor(theta, dtype=torch.float64)}
    state, numbers, path = optimizer.init(params), hyper(build("also", options), 0), []
    for _ in range(steps):
        params, state, _, _ = advance(optimizer, lambda x: (x, x["theta"]), state, params, numbers, of_losses(losses))
        path.append(float(params["theta"]))
    return path, state["log_pi"].exp()


def test_weights_come_to_the_best_answer_at_a_known_rate() -> None:
    eta, tau, prior = 0.5, 0.3, np.array([0.5, 0.3, 0.2])
    h = np.array([0.4, -0.2, 0.7])
    best = prior * np.exp(h / tau) / (prior * np.exp(h / tau)).sum()
    optimizer = build(
        "also",
        {"groups": 3, "of": SGD, "mode": "descent_ascent", "pi_lr": eta, "pi_decay": tau, "prior": list(prior)},
    )
    numbers, gaps = hyper(optimizer, 0), []
    params = {"theta": torch.zeros((), dtype=torch.float64)}
    state = optimizer.init(params)
    for _ in range(25):
        _, state = optimizer.update(
            params,
            state,
            params,
            numbers,
            group_loss=torch.tensor(h / 3.0),
            count=torch.tensor(1.0, dtype=torch.float64),
        )
        error = state["log_pi"].numpy() - np.log(best)
        gaps.append(np.ptp(error))  # up to the constant of the normalisation
    assert gaps[-1] / gaps[-2] == pytest.approx(0.8695652, abs=1e-6) == pytest.approx(1 / (1 + eta * tau), abs=1e-6)
    assert float(state["log_pi"].exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_equal_losses_leave_the_prior() -> None:
    prior = [0.6, 0.3, 0.1]
    for update in ("exponentiated", "projected"):
        _, pi = walk(
            lambda x: torch.stack([x**2] * 3), 1.0, 50, groups=3, of=SGD, pi_lr=0.1, pi_decay=0.1, prior=prior,
            pi_update=update,
        )  # fmt: skip
        torch.testing.assert_close(pi, torch.tensor(prior, dtype=torch.float64), rtol=0, atol=1e-12)


def small() -> tuple[torch.nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (24,), generator=generator)
    torch.manual_seed(0)
    return torch.nn.Linear(5, 4, dtype=torch.float64), x, y


@pytest.mark.parametrize("prior", [None, [4.0, 3.0, 2.0, 1.0]])
def test_weights_that_do_not_move_are_adam_with_static_ones(prior: list[float] | None) -> None:
    """Uniform: Adam on the mean loss. Both limits: η → 0, and τ → ∞ with any η."""
    for limit in ({"pi_lr": 0.0}, {"pi_lr": 0.5, "pi_decay": 1e12}):
        model, x, y = small()
        other = copy.deepcopy(model)
        weights = torch.tensor(prior or [1.0] * 4, dtype=torch.float64)
        weights = 4.0 * weights / weights.sum()
        mine = as_torch(
            model.parameters(), build("also", {"groups": 4, "mode": "descent_ascent", "prior": prior, **limit})
        )
        theirs = torch.optim.Adam(other.parameters(), lr=1e-3, eps=1.19e-7, weight_decay=1e-3)
        for _ in range(30):
            mine.step(
                lambda model=model, x=x, y=y: (torch.nn.functional.cross_entropy(model(x), y, reduction="none"), y)
            )
            theirs.zero_grad()
            (weights[y] * torch.nn.functional.cross_entropy(other(x), y, reduction="none")).mean().backward()
            theirs.step()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def by_hand(x: Tensor, y: Tensor, steps: int, *, advance_state: bool) -> np.ndarray:
    """The optimistic form with Adam in numpy, one weight vector per class of softmax regression without bias."""
    a, labels, c, n = x.numpy(), y.numpy(), 4, len(y)
    w, m, v, k = np.zeros((c, a.shape[1])), 0.0, 0.0, 0
    log_pi, h, g = np.full(c, math.log(0.25)), np.zeros(c), np.zeros_like(w)
    eta, tau, lr, lam = 0.2, 0.05, 1e-2, 1e-3

    def step(at: np.ndarray, g: np.ndarray, m: Any, v: Any, k: int) -> Any:
        g = g + lam * at
        m, v, k = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, k + 1
        return (
            at - lr * math.sqrt(1 - 0.999**k) / (1 - 0.9**k) * m / (np.sqrt(v) + 1.19e-7 * math.sqrt(1 - 0.999**k)),
            m,
            v,
            k,
        )

    def turn(log_pi: np.ndarray, h: np.ndarray) -> np.ndarray:
        raw = (log_pi + eta * tau * math.log(1 / c) + eta * h) / (1 + eta * tau)
        return raw - np.log(np.exp(raw).sum())

    for t in range(steps):
        half, log_half = w, log_pi
        if t:
            half, *after = step(w, g, m, v, k)
            log_half = turn(log_pi, h)
            if advance_state:
                m, v, k = after
        g, h = np.zeros_like(w), np.zeros(c)
        for i in range(n):
            z = half @ a[i]
            p = np.exp(z - z.max())
            p /= p.sum()
            s = c / n
            h[labels[i]] += s * -math.log(p[labels[i]])
            p[labels[i]] -= 1.0
            g += math.exp(log_half[labels[i]]) * s * np.outer(p, a[i])
        w, m, v, k = step(w, g, m, v, k)
        log_pi = turn(log_pi, h)
    return w


@pytest.mark.parametrize("lookahead", ["advance", "peek"])
def test_the_optimistic_form_is_the_one_by_hand(lookahead: str) -> None:
    _, x, y = small()
    w = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
    inner = {"name": "adam", "lr": 1e-2, "eps": 1.19e-7, "weight_decay": 1e-3}
    optimizer = as_torch(
        [w], build("also", {"groups": 4, "of": inner, "pi_lr": 0.2, "pi_decay": 0.05, "lookahead": lookahead})
    )
    for _ in range(20):
        optimizer.step(lambda: (torch.nn.functional.cross_entropy(x @ w.T, y, reduction="none"), y))
    wanted = by_hand(x, y, 20, advance_state=lookahead == "advance")
    np.testing.assert_allclose(w.detach().numpy(), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("tau", "far"), [(0.0, 9.7), (0.01, 3.5)])
def test_optimism_ends_the_circles_of_a_bilinear_game(tau: float, far: float) -> None:
    options = {"groups": 2, "of": SGD, "pi_lr": 0.05, "pi_decay": tau, "start": [0.7, 0.3]}
    if tau:
        options["prior"] = [1.0, 1.0]

    def losses(x: Tensor) -> Tensor:
        return torch.stack([x, -x])

    path, pi = walk(losses, 1.0, 20_000, mode="descent_ascent", loss_scale=1.0, **options)
    assert max(map(abs, path[-2000:])) == pytest.approx(far, rel=0.05)
    assert tau or float(pi.max()) > 0.999
    path, pi = walk(losses, 1.0, 20_000, loss_scale=1.0, **options)
    assert max(map(abs, path[-2000:])) < 3e-10
    torch.testing.assert_close(pi, torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["optimistic", "descent_ascent"])
def test_squares_have_the_answer_of_the_worst_two(mode: str) -> None:
    def losses(x: Tensor) -> Tensor:
        return torch.stack([(x - a) ** 2 for a in (-1.0, 1.0, 5.0)])

    options = {"groups": 3, "of": SGD, "pi_lr": 0.05, "mode": mode, "loss_scale": 1.0}
    path, pi = walk(losses, 0.0, 5_000, pi_decay=0.0, **options)
    assert path[-1] == pytest.approx(2.0, abs=1e-3)
    torch.testing.assert_close(pi, torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), rtol=0, atol=1e-3)
    path, _ = walk(losses, 0.0, 5_000, pi_decay=1e4, **options)
    assert path[-1] == pytest.approx(1.6673, abs=1e-3)


def test_repeated_groups_add_up_and_absent_ones_come_back_to_the_prior() -> None:
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = as_torch(
        [w],
        build(
            "also",
            {
                "groups": 3,
                "of": SGD,
                "pi_lr": 0.1,
                "pi_decay": 0.5,
                "mode": "descent_ascent",
                "start": [0.2, 0.2, 0.6],
                "prior": [1.0, 1.0, 1.0],
            },
        ),
    )
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    optimizer.step(lambda: (losses + 0.0 * w, torch.tensor([1, 1, 0])))
    state = optimizer.state["group 0"]
    torch.testing.assert_close(state["h"], torch.tensor([4.0, 3.0, 0.0], dtype=torch.float64))
    raw = np.log([0.2, 0.2, 0.6]) + 0.05 * math.log(1 / 3) + 0.1 * np.array([4.0, 3.0, 0.0])
    raw = np.exp(raw / 1.05)
    np.testing.assert_allclose(state["log_pi"].exp(), raw / raw.sum(), atol=1e-12)
    assert float(state["log_pi"][2].exp()) < 0.6


def test_the_projection_is_the_nearest_point() -> None:
    generator = torch.Generator().manual_seed(1)
    for cap in (1.0, 0.4):
        for _ in range(20):
            v = torch.randn(5, generator=generator, dtype=torch.float64)
            p = projection(v, cap)
            assert float(p.sum()) == pytest.approx(1.0, abs=1e-12) and 0 <= float(p.min()) <= float(p.max()) <= cap
            for _ in range(50):  # ⟨v - p, q - p⟩ <= 0 for every q of the set
                q = torch.distributions.Dirichlet(torch.ones(5, dtype=torch.float64)).sample()
                if float(q.max()) <= cap:
                    assert float((v - p) @ (q - p)) <= 1e-9


def test_inverse_frequencies() -> None:
    assert inverse_frequency([30, 10]) == pytest.approx((0.25, 0.75))


def test_two_gaussians_of_thirty_to_one() -> None:
    """With the prior of inverse frequencies the rare class is found at least as often as by Adam."""
    gains = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        y = torch.cat([torch.zeros(900), torch.ones(30)]).long()
        x = torch.randn(930, 2, generator=generator) + 1.5 * y[:, None]
        fresh = torch.randn(1000, 2, generator=generator) + 1.5
        recalls = []
        for name in ("adam", "also"):
            torch.manual_seed(seed)
            model = torch.nn.Linear(2, 2)
            options: dict[str, Any] = {"lr": 0.02}
            if name == "also":
                options = {"groups": 2, "of": {"name": "adam", "lr": 0.02}, "prior": list(inverse_frequency([900, 30]))}
            optimizer = as_torch(model.parameters(), build(name, options))

            def losses(rows: Tensor, model: torch.nn.Module = model, x: Tensor = x, y: Tensor = y) -> Tensor:
                return torch.nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")

            for _ in range(300):
                rows = torch.randint(0, 930, (128,), generator=generator)
                if name == "also":
                    optimizer.step(lambda rows=rows, losses=losses, y=y: (losses(rows), y[rows]))
                else:
                    optimizer.zero_grad()
                    losses(rows).mean().backward()
                    optimizer.step()
            recalls.append(float((model(fresh).argmax(1) == 1).float().mean()))
        gains.append(recalls[1] - recalls[0])
    assert min(gains) >= 0.0


def test_bad_input_by_message() -> None:
    with pytest.raises(ConfigError, match="a weight for each of the 3 groups"):
        build("also", {"groups": 3, "prior": [0.5, 0.5]})
    with pytest.raises(ConfigError, match="raise cap"):
        build("also", {"groups": 3, "pi_update": "projected", "cap": 0.1})
    with pytest.raises(ConfigError, match="asks for more than a gradient"):
        build("also", {"groups": 3, "of": {"name": "schedule_free"}})
    w = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(FedoptError, match="each group below 2"):
        as_torch([w], build("also", {"groups": 2})).step(lambda: (w.sum() + torch.zeros(2), torch.tensor([0, 2])))
    with pytest.raises(FedoptError, match="weights groups of samples"):
        optimizer = build("also", {"groups": 2})
        params = {"w": torch.zeros(2)}
        advance(optimizer, lambda x: (x, x["w"].sum()), optimizer.init(params), params, hyper(optimizer, 0))
