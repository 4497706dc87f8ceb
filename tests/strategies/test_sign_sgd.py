"""Sign-SGD by majority vote: against loops, the optimizer it is with one node, and its bytes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedopt import optimizers
from fedopt.data import pool
from fedopt.experiment import run
from fedopt.optimizers import advance, hyper
from fedopt.participation import selection
from fedopt.testing.strategies import Played, compose, play, small_federation, small_problem
from fedopt.types import Batches, Named
from tests.strategies.test_oracles import Array, cross_entropy, gradient, samples, start

SIZES = (7, 12, 5, 9, 11)
ROUNDS = 8


def voted(rounds: int = ROUNDS, sizes: tuple[int, ...] = SIZES, **options: Any) -> Played:
    rates = {name: options.pop(name) for name in ("lr",) if name in options}  # `compose` has a use of its own for it
    strategy: Any = compose("sign_sgd", **{"eta_0": 1.0, **options})
    return play(small_problem(small_federation(sizes)), dataclasses.replace(strategy, **rates), rounds)


def looped(played: Played, *, option: str, full: bool, beta: float = 0.0) -> tuple[Array, list[float]]:
    """Everybody, or who was asked, with all of its samples; (model, steps)."""
    x = start(played)
    h, d, evidence, begun = 1.0, 1e-6, 0.0, False
    last: dict[int, tuple[int, Array]] = {}
    m: dict[int, Array] = {i: np.zeros_like(x) for i in range(len(SIZES))}
    gammas = []
    for t, step in enumerate(played.steps):
        ballot, losses, changes, descents = np.zeros_like(x), [], [], []
        for i in step.replies.clients.tolist():
            g = gradient(x, *samples(played, i))
            losses.append(cross_entropy(x, *samples(played, i)))
            m[i] = beta * m[i] + (1 - beta) * g
            ballot += np.sign(m[i] if beta else g)
            if i in last:
                when, old = last[i]
                changes.append((g - gradient(old, *samples(played, i))) / np.abs(x - old).max())
                descents.append(g @ (old - x) / (t - when))
            last[i] = (t, x.copy())
        if changes:
            norms = [np.abs(change).sum() for change in changes]
            h += float(np.abs(np.mean(changes, axis=0)).sum() if full else np.mean(norms))
            evidence += float(np.mean(descents))
        if option == "I":
            d = max(d, evidence)
        elif not begun:
            d = float(np.mean(losses))
        begun = True
        gammas.append(math.sqrt(d / h))
        x = x - gammas[-1] * np.sign(ballot)
    return x, gammas


@pytest.mark.parametrize("cohort", [None, 3])
@pytest.mark.parametrize(
    ("option", "exchange", "beta"), [("II", "norms", 0.0), ("I", "full", 0.0), ("II", "full", 0.9)]
)
def test_the_loops(option: str, exchange: str, beta: float, cohort: int | None) -> None:
    played = voted(option=option, exchange=exchange, momentum=beta, participation=selection(count=cohort or 5))
    wanted, gammas = looped(played, option=option, full=exchange == "full", beta=beta)
    assert played.params is not None
    np.testing.assert_allclose(played.params.numpy(), wanted, rtol=0, atol=1e-10)
    np.testing.assert_allclose([step.info["step_size"] for step in played.steps], gammas, rtol=1e-10)


def by_optimizer(option: str) -> tuple[torch.Tensor, torch.Tensor]:
    problem = small_problem(pool(small_federation(SIZES)))
    played = play(problem, compose("sign_sgd", option=option, eta_0=1.0), ROUNDS)
    optimizer = optimizers.build("alias", {"option": option, "eta_0": 1.0})
    params, _ = problem.unpack(problem.initial)
    shards = problem.data.splits["train"]
    batch: Named = {"x": shards.x[shards.index], "y": shards.y}
    batch["mask"] = torch.ones(batch["y"].shape[0], dtype=torch.bool)

    def oracle(point: Named) -> tuple[Named, torch.Tensor]:
        grads, (loss, _) = torch.func.grad_and_value(
            lambda p: problem.objective(p, {}, batch, torch.tensor(0)), has_aux=True
        )(point)
        return grads, loss

    state = optimizer.init(params)
    for _ in range(ROUNDS):
        params, state, _, _ = advance(optimizer, oracle, state, params, hyper(optimizer, 0))
    assert played.params is not None
    return played.params, problem.network.spec.flatten(params)


@pytest.mark.parametrize("option", ["I", "II"])
def test_one_node_is_the_optimizer(option: str) -> None:
    torch.testing.assert_close(*by_optimizer(option), rtol=0, atol=1e-10)


def test_the_mean_of_norms_bounds_the_norm_of_the_mean() -> None:
    norms, full = (voted(2, exchange=exchange).state.optimizer["h"] for exchange in ("norms", "full"))
    assert 1.0 < float(full) < float(norms)


def test_a_given_step_and_a_rule() -> None:
    played = voted(1, rate="given", lr=0.02, weight_decay=0.5)
    x = start(played)
    ballot = sum(np.sign(gradient(x, *samples(played, i))) for i in range(len(SIZES)))
    assert played.params is not None
    np.testing.assert_allclose(played.params.numpy(), 0.99 * x - 0.02 * np.sign(ballot), rtol=0, atol=1e-12)
    assert "before" not in played.memory.first


@pytest.mark.parametrize(("codec", "bits"), [({"name": "sign", "scale": "one"}, 1), ({"name": "terngrad"}, 2)])
def test_one_bit_for_an_entry(tmp_path: Path, codec: dict[str, Any], bits: int) -> None:
    """Both ways; the codes change nothing where no gradient is exactly 0 and votes cannot be tied."""

    def document(compressed: bool) -> dict[str, Any]:
        both = {"compression": {**codec, "down": {**codec, **({"scale": "mean"} if bits == 1 else {})}}}
        return {
            "run": {"rounds": 5, "out": str(tmp_path / str(compressed)), "dtype": "float64"},
            "data": {"name": "digits", "clients": 5},
            "model": {"name": "mlp", "hidden": [64], "activation": "tanh"},
            "strategy": {"name": "sign_sgd", "batch_size": 64},
            **(both if compressed else {}),
        }

    plain, small = run(document(False)), run(document(True))
    d = small.setup.problem.d
    one, other = small.history[-1], plain.history[-1]
    assert one["bytes_up"] / 5 < bits * d / 8 + 200 < other["bytes_up"] / 5 / 20
    assert one["bytes_down"] / 5 < bits * d / 8 + 200
    if bits == 2:  # pixels that are always 0 have gradients of 0, which a single bit cannot say
        assert small.model is not None and plain.model is not None
        torch.testing.assert_close(small.model, plain.model, rtol=0, atol=1e-5)


def test_batches() -> None:
    played = voted(3, batches=Batches(size=4, steps=2))
    assert {int(step.replies.metrics["steps"].max()) for step in played.steps} == {2}
