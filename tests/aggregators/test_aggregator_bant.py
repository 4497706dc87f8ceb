"""BANT against its formulas in loops, the numbers of its definition, and what it promises for convex trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import aggregators
from fedopt.types import Trial
from tests.aggregators.trial_sets import drawn, looped_gradient, looped_loss


def scored(
    row: list[float], here: float, loss: Callable[[list[float]], float], gradient: list[float], halvings: int
) -> tuple[float, float]:
    """How much an update lowers the loss, and at which part of its length."""
    downhill = sum(g * r for g, r in zip(gradient, row, strict=True)) < 0
    for times in range(halvings + 1):
        gain = here - loss([r / 2**times for r in row])
        if gain > 0:
            return gain, 1 / 2**times
        if not downhill:
            break
    return 0.0, 1.0


def looped(
    updates: list[list[float]],
    clients: list[int],
    v: list[float],
    scores: list[tuple[float, float]],
    beta: float,
    form: str,
) -> tuple[list[float], list[float]]:
    """One round, client by client: the delta and the trust after it; nothing moves where no update helps."""
    theta = [gain for gain, _ in scores]
    if sum(theta) == 0.0:
        return [0.0] * len(updates[0]), v
    held = sum(v[c] for c in clients)
    v = list(v)
    for c, t in zip(clients, theta, strict=True):
        v[c] = (1 - beta) * v[c] + beta * held * t / sum(theta)
    weights = [v[c] if t > 0 else 0.0 for c, t in zip(clients, theta, strict=True)]
    divisor = sum(weights) if form == "released" else held
    delta = [
        sum(w / divisor * part * row[j] for w, (_, part), row in zip(weights, scores, updates, strict=True))
        for j in range(len(updates[0]))
    ]
    return delta, v


@pytest.mark.parametrize("halvings", [0, 3])
@pytest.mark.parametrize("form", ["released", "paper"])
def test_oracle(form: str, halvings: int) -> None:
    shortened = 0
    for seed in range(100):
        rule = aggregators.build("bant", {"form": form, "beta": 0.1 + 0.009 * seed, "halvings": halvings})
        population = 10
        state, v = rule.init(population), [0.1] * population
        for number in range(3):
            updates, x, y, base, trial = drawn(3 * seed + number)
            n = updates.shape[0]
            clients = sorted(
                torch.randperm(population, generator=torch.Generator().manual_seed(seed + number))[:n].tolist()
            )
            here = looped_loss(x, y, base.tolist())
            gradient = looped_gradient(x, y, base.tolist(), list(range(x.shape[0])))

            def loss(
                row: list[float],
                x: Tensor = x,
                y: Tensor = y,
                at: list[float] = base.tolist(),  # noqa: B008 - a value
            ) -> float:
                return looped_loss(x, y, [b + r for b, r in zip(at, row, strict=True)])

            rows = updates.tolist()
            scores = [scored(row, here, loss, gradient, halvings) for row in rows]
            shortened += sum(part < 1 for _, part in scores)
            wanted, v = looped(rows, clients, v, scores, 0.1 + 0.009 * seed, form)
            got, state, info = rule.apply(updates, state, clients=torch.tensor(clients), trial=trial)
            torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(state.trust, torch.tensor(v, dtype=torch.float64), rtol=1e-9, atol=1e-12)
            assert ("kept_model" in info) == (max(gain for gain, _ in scores) <= 0)
            assert info["shortened"] == sum(part < 1 for _, part in scores)
    assert (shortened > 20) == (halvings > 0)


def test_an_update_that_overshoots_is_shortened_and_one_uphill_is_not() -> None:
    _, x, y, base, trial = drawn(5)
    downhill = -trial.grad(torch.zeros(4, dtype=torch.float64))
    step = 1.0
    while trial.loss(step * downhill[None])[0] <= trial.loss(torch.zeros(1, 4, dtype=torch.float64))[0]:
        step *= 2.0
    rows = torch.stack([step * downhill, -1e-3 * downhill])
    ids = torch.arange(2)
    whole, short = aggregators.build("bant", {"halvings": 0}), aggregators.build("bant", {"halvings": 20})
    delta, _, info = whole.apply(rows, whole.init(2), clients=ids, trial=trial)
    assert not delta.any() and "kept_model" in info
    delta, _, info = short.apply(rows, short.init(2), clients=ids, trial=trial)
    assert looped_loss(x, y, (base + delta).tolist()) < looped_loss(x, y, base.tolist())
    assert info["trust"].tolist() == [1.0, 0.0] and (info["useful"], info["shortened"]) == (1, 1)


def table(losses: list[float]) -> Trial:
    """A trial function that knows the origin and the unit vectors alone: losses[0] at 0, losses[1 + i] at e_i."""

    def loss(deltas: Tensor, rows: Tensor | None = None) -> Tensor:
        at = [0 if not row.any() else 1 + int(row.argmax()) for row in deltas]
        return torch.tensor([losses[i] for i in at], dtype=torch.float64)

    return Trial(loss, lambda delta, rows=None: delta, lambda deltas: deltas, torch.zeros(1))


def applied(losses: list[float], **options: Any) -> tuple[Tensor, Any, dict[str, Any]]:
    rule = aggregators.build("bant", options)
    updates = torch.eye(4, dtype=torch.float64)
    return rule.apply(updates, rule.init(4), clients=torch.arange(4), trial=table([1.0, *losses]))


def test_numbers_of_the_definition() -> None:
    losses = [0.7, 0.9, 1.0, 1.4]  # theta = (.3, .1, 0, 0)
    delta, state, _ = applied(losses, form="paper")
    torch.testing.assert_close(state.trust, torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64))
    torch.testing.assert_close(delta, torch.tensor([0.5, 0.25, 0.0, 0.0], dtype=torch.float64))
    delta, _, info = applied(losses, form="released")
    torch.testing.assert_close(delta, torch.tensor([2 / 3, 1 / 3, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(info["trust"], delta)


def test_nobody_helps() -> None:
    delta, state, info = applied([1.0, 1.1, 2.0, float("nan")])
    assert not delta.any() and "none of 4 updates" in info["kept_model"]
    torch.testing.assert_close(state.trust, torch.full((4,), 0.25, dtype=torch.float64))
    delta, _, info = applied([1.0, 1.1, 2.0, 3.0], useless="average")
    torch.testing.assert_close(delta, torch.full((4,), 0.25, dtype=torch.float64))
    assert "kept_model" not in info


@pytest.mark.parametrize("form", ["released", "paper"])
def test_a_convex_trial_loss_never_rises_whatever_is_sent(form: str) -> None:
    rule = aggregators.build("bant", {"form": form})
    for seed in range(100):
        updates, _, _, _, trial = drawn(seed, n=6)
        hostile = updates * torch.tensor([1.0, -1.0, 1e3, 1e-6, 0.0, 1e12], dtype=torch.float64)[:, None]
        state = rule.init(6)
        for _ in range(3):
            delta, state, _ = rule.apply(hostile, state, clients=torch.arange(6), trial=trial)
            before, after = trial.loss(torch.stack([torch.zeros_like(delta), delta]))
            assert after <= before + 1e-12


def test_the_only_honest_client_gets_all_trust() -> None:
    rule = aggregators.build("bant", {})
    _, x, y, base, trial = drawn(5)
    honest = -0.1 * trial.grad(torch.zeros(4, dtype=torch.float64))
    rows = torch.stack([honest, *(-(i + 1.0) * honest for i in range(4))])
    state = rule.init(5)
    for _ in range(20):
        delta, state, _ = rule.apply(rows, state, clients=torch.arange(5), trial=trial)
        torch.testing.assert_close(delta, honest)
    assert state.trust[0] > 0.999
    assert looped_loss(x, y, (base + honest).tolist()) < looped_loss(x, y, base.tolist())


def test_the_gradient_of_the_trial_set() -> None:
    _, x, y, base, trial = drawn(8)
    rows = [3, 7, 11]
    wanted = looped_gradient(x, y, base.tolist(), rows)
    got = trial.grad(torch.zeros(4, dtype=torch.float64), torch.tensor(rows))
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64))


def test_scaling_keeps_the_size_of_a_step() -> None:
    updates, x, y, base, trial = drawn(2, n=5)
    g = looped_gradient(x, y, base.tolist(), list(range(x.shape[0])))
    inverse = [1.0 / max(abs(v), 1e-8 * max(map(abs, g))) for v in g]
    scaled = torch.tensor(
        [[float(v) * s * len(inverse) / sum(inverse) for v, s in zip(row, inverse, strict=True)] for row in updates],
        dtype=torch.float64,
    )
    plain, rule = aggregators.build("bant", {}), aggregators.build("bant", {"scaling": "rmsprop"})
    ids = torch.arange(5)
    got, state, _ = rule.apply(updates, rule.init(5), clients=ids, trial=trial)
    wanted, _, _ = plain.apply(scaled, plain.init(5), clients=ids, trial=trial)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(state.scale, torch.tensor(g, dtype=torch.float64).square())
    _, later, _ = rule.apply(updates, state, clients=ids, trial=trial)
    torch.testing.assert_close(later.scale, state.scale)  # the same gradient again


def test_it_needs_a_trial_set() -> None:
    rule = aggregators.build("bant", {})
    assert rule.needs == {"clients", "trial"}
    with pytest.raises(aggregators.FedoptError, match="bant needs trial"):
        rule.apply(torch.zeros(3, 2), rule.init(3), clients=torch.arange(3))
