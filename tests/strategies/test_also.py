"""ALSO over a federation: as on one machine with the groups known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt import optimizers
from fedopt.optimizers import as_torch
from fedopt.participation import selection
from fedopt.registry import ConfigError
from fedopt.testing.strategies import Played, compose, play, small_federation, small_problem
from fedopt.types import Batches

SIZES = (7, 12, 5, 9)
ROUNDS = 6
ADAM = {"name": "adam", "lr": 0.05, "eps": 1e-7, "weight_decay": 0.01}
WEIGHTS = {"pi_lr": 0.3, "pi_decay": 0.1}


def federated(groups: str, rounds: int = ROUNDS, sizes: tuple[int, ...] = SIZES, **options: Any) -> Played:
    server = optimizers.build("adam", {k: v for k, v in ADAM.items() if k != "name"})
    strategy = compose("also", server=server, groups=groups, **{**WEIGHTS, **options})
    return play(small_problem(small_federation(sizes)), strategy, rounds)


def alone(played: Played, by: str, rounds: int = ROUNDS, **options: Any) -> tuple[Tensor, Tensor]:
    """The optimizer over the union of all samples, through torch; the model and π."""
    shards = played.problem.data.splits["train"]
    x, y = shards.x[shards.index], shards.y
    owner = torch.repeat_interleave(torch.arange(len(shards.sizes)), shards.sizes)
    groups, number = (owner, len(shards.sizes)) if by == "clients" else (y, played.problem.data.classes)
    params, _ = played.problem.unpack(played.problem.initial)
    tensors = {name: torch.nn.Parameter(t.clone()) for name, t in params.items()}
    given = {"groups": number, "of": ADAM, **WEIGHTS, **options}
    optimizer = as_torch(tensors.values(), optimizers.build("also", given))

    def losses() -> tuple[Tensor, Tensor]:
        outputs, _ = played.problem.network.train(tensors, {}, x, torch.tensor(0))
        return played.problem.per_sample(outputs, y), groups

    for _ in range(rounds):
        optimizer.step(losses)
    flat = played.problem.network.spec.flatten({name: t.detach() for name, t in tensors.items()})
    return flat, optimizer.state["group 0"]["log_pi"].exp()


@pytest.mark.parametrize("options", [{}, {"mode": "descent_ascent"}, {"lookahead": "peek", "alpha": 0.5}])
@pytest.mark.parametrize("groups", ["clients", "classes"])
def test_with_everybody_it_is_the_optimizer_on_all_samples(groups: str, options: dict[str, Any]) -> None:
    played = federated(groups, **options)
    wanted, pi = alone(played, groups, **options)
    assert float((wanted - played.problem.initial["params"]).norm()) > 0.1
    assert played.params is not None
    torch.testing.assert_close(played.params, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(played.state.optimizer["log_pi"].exp(), pi, rtol=0, atol=1e-12)
    assert float((pi - pi.mean()).abs().max()) > 0.01


def test_who_is_absent_shrinks_towards_the_prior() -> None:
    played = federated("clients", 1, participation=selection(count=2), mode="descent_ascent")
    (step,) = played.steps
    asked = step.replies.clients.tolist()
    seen, loss = step.replies.metrics["seen"], step.replies.metrics["loss"]
    h = np.zeros(len(SIZES))
    for i, (n, value) in zip(asked, zip(seen.tolist(), loss.tolist(), strict=True), strict=True):
        h[i] = len(SIZES) / float(seen.sum()) * n * value
    raw = (np.log(np.full(4, 0.25)) + 0.3 * 0.1 * np.log(0.25) + 0.3 * h) / 1.03
    wanted = np.exp(raw) / np.exp(raw).sum()
    np.testing.assert_allclose(played.state.optimizer["log_pi"].exp(), wanted, atol=1e-12)
    assert all(wanted[i] < 0.25 for i in range(4) if i not in asked)


def test_priors() -> None:
    played = federated("clients", 1, prior="inverse_frequency", pi_lr=0.0)
    inverse = 1.0 / np.array(SIZES)
    np.testing.assert_allclose(played.state.optimizer["log_pi"].exp(), inverse / inverse.sum(), atol=1e-12)
    problem = small_problem(small_federation(SIZES))
    for options, message in (
        ({"groups": "classes", "prior": "inverse_frequency"}, "give a weight for each"),
        ({"prior": (0.5, 0.5)}, "a weight for each of the 4 groups"),
    ):
        with pytest.raises(ConfigError, match=message):
            play(problem, compose("also", **options), 1)


def test_mini_batches() -> None:
    played = federated("classes", 3, batches=Batches(size=4, steps=2))
    for step in played.steps:
        assert float(step.replies.weights.sum()) == float(step.replies.metrics["seen"].sum())
        assert float(step.replies.metrics["seen"].max()) <= 8
    assert played.params is not None and not torch.equal(played.params, played.problem.initial["params"])
