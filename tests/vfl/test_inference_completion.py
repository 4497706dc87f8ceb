"""Labels by a head on a party's bottom network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from fedopt import keys
from fedopt.strategies.egvfl import egvfl
from fedopt.types import FedoptError
from fedopt.vfl.inference.completion import completion
from fedopt.vfl.inference.success import accuracy
from fedopt.vfl.noisy import Noisy
from tests.vfl.recorded import DOUBLE, record, table

KNOWN = 10


def right(held: Tensor, y: Tensor) -> float:
    """Share of the others' labels, the mean over draws of who is known."""
    found = []
    for seed in range(8):
        known = keys.permutation(keys.root(seed), y.numel())[:KNOWN]
        others = torch.ones(y.numel(), dtype=torch.bool)
        others[known] = False
        found.append(accuracy(completion(held, known, y[known]).label[others], y[others]).attack)
    return sum(found) / len(found)


def test_the_head_by_another_minimiser() -> None:
    held = 3.0 + 2.0 * keys.normal(keys.root(0), 40, 3, dtype=DOUBLE)
    y = (held[:, 0] + keys.normal(keys.root(1), 40, dtype=DOUBLE) > 3.0).to(torch.int64)
    known = torch.arange(0, 40, 2)
    a = held.numpy()
    a = (a - a.mean(axis=0)) / a.std(axis=0, ddof=1)
    signs = 2.0 * y.numpy() - 1.0

    def objective(w: np.ndarray) -> float:
        loss = sum(np.logaddexp(0.0, -signs[j] * (a[j] @ w[:3] + w[3])) for j in range(0, 40, 2))
        return float(loss + 0.5 * 2.0 * w[:3] @ w[:3])

    w = minimize(objective, np.zeros(4), tol=1e-12).x
    wanted = 1.0 / (1.0 + np.exp(-(a @ w[:3] + w[3])))
    found = completion(held, known, y[known], penalty=2.0)
    np.testing.assert_allclose(found.probability[:, 1].numpy(), wanted, atol=1e-3)
    assert found.label.tolist() == [int(p > 0.5) for p in wanted]


def test_labels_keep_their_names_and_constant_columns_do_no_harm() -> None:
    held = torch.cat([torch.arange(30.0)[:, None], torch.full((30, 1), 4.0)], dim=1)
    y = torch.tensor([2, 5, 9]).repeat_interleave(10)
    known = torch.tensor([1, 4, 8, 11, 15, 18, 21, 25, 28])
    found = completion(held, known, y[known], penalty=1e-3)
    assert accuracy(found.label, y).attack > 0.9
    assert found.probability.shape == (30, 3)


def test_training_gives_away_labels_and_noise_on_what_the_owner_tells_gives_fewer() -> None:
    here = table(2, each=30, binary=False)
    strategy, features = egvfl(loss="logistic", step=0.3), here.columns[0]

    def outputs(weights: Tensor) -> Tensor:
        return (features @ weights)[:, None]

    trained = right(outputs(record(here.problem, strategy, 20).weights[0]), here.y)
    untrained = right(outputs(keys.normal(keys.root(3), 30, dtype=DOUBLE)), here.y)
    baseline = accuracy(here.y, here.y).baseline
    noisy = [right(outputs(record(here.problem, Noisy(strategy, 0.05, z), 20).weights[0]), here.y) for z in (5.0, 50.0)]
    assert trained > max(untrained, right(features, here.y), baseline) + 0.07
    assert max(noisy) < trained - 0.05


def test_what_is_known_has_to_fit() -> None:
    held, y = torch.zeros(10, 2), torch.tensor([0, 1, 1])
    with pytest.raises(FedoptError, match=r"as many labels as people who are known, are needed; \[10, 2\], \[2\]"):
        completion(held, torch.tensor([1, 2]), y)
    with pytest.raises(FedoptError, match="known labels of two classes at least are needed"):
        completion(held, torch.tensor([1, 2]), y[1:])
