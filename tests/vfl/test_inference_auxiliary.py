"""Features of everybody by a regression on messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.strategies.egvfl import egvfl
from fedopt.strategies.vertical_gd import vertical_gd
from fedopt.types import FedoptError, Strategy
from fedopt.vfl.inference.auxiliary import PENALTIES, auxiliary
from fedopt.vfl.inference.success import correlation, entries
from fedopt.vfl.noisy import Noisy
from tests.vfl.recorded import DOUBLE, record, table

KNOWN = 12


def normal(seed: int, *shape: int) -> Tensor:
    return keys.normal(keys.root(seed), *shape, dtype=DOUBLE)


def test_against_leaving_one_out_by_loops() -> None:
    features, known = normal(0, 40, 2), torch.arange(3, 11)
    sent = features @ normal(1, 2, 4) + 0.3 * normal(2, 40, 4)
    left = np.linalg.svd(sent.numpy(), full_matrices=False)[0] * np.sqrt(40)
    a, rows = features.numpy(), known.numpy()

    def fitted(x: np.ndarray, y: np.ndarray, alpha: float, at: np.ndarray) -> np.ndarray:
        centre = x.mean(axis=0)
        w = np.linalg.solve((x - centre).T @ (x - centre) + alpha * np.eye(x.shape[1]), (x - centre).T @ (y - y.mean()))
        return y.mean() + (at - centre) @ w

    for column in range(2):
        best, wanted = np.inf, np.zeros(40)
        for r in range(1, 5):
            for alpha in PENALTIES:
                error = 0.0
                for j in rows:
                    rest = rows[rows != j]
                    guess = fitted(left[rest, :r], a[rest, column], alpha, left[[j], :r])
                    error += (guess[0] - a[j, column]) ** 2
                if error < best * (1 - 1e-9):
                    best, wanted = error, fitted(left[rows, :r], a[rows, column], alpha, left[:, :r])
        found = auxiliary(sent, known, features[known])[:, column]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_of_a_linear_network_the_guesses_are_exact() -> None:
    features = 2.0 + normal(0, 200, 5)
    known = torch.arange(7)
    for k in (5, 9):  # as many exchanges as features, and more
        found = auxiliary(features @ normal(1, 5, k), known, features[known])
        torch.testing.assert_close(found, features, rtol=1e-6, atol=1e-6)
    assert correlation(auxiliary(features @ normal(1, 5, 3), known, features[known]), features).attack < 0.95


@pytest.mark.parametrize("strategy", [egvfl(loss="logistic", step=0.3), vertical_gd(loss="logistic", step=1.0)])
@pytest.mark.parametrize("binary", [True, False])
def test_features_are_found_and_with_noise_or_sums_less_so(strategy: Strategy, binary: bool) -> None:
    here = table(binary=binary)
    truth, known = here.columns[0], torch.arange(KNOWN)

    def attack(sent: Tensor) -> float:
        found = auxiliary(sent, known, truth[known])
        found, rest = found[KNOWN:], truth[KNOWN:]
        return (entries(found, rest) if binary else correlation(found, rest)).attack

    baseline = entries(truth, truth).baseline if binary else 0.0
    plain = record(here.problem, strategy, 30)
    assert attack(plain.sent(0)) > 0.95
    level = baseline + 0.5 * (1.0 - baseline)
    assert attack(plain.summed()) < level
    noisy = [attack(record(here.problem, Noisy(strategy, 0.6, z), 15).sent(0)) for z in (0.1, 1.0)]
    assert noisy[0] < 0.8 and noisy[1] < level


def test_sums_protect_only_as_long_as_fewer_are_known_than_all_features_together() -> None:
    here = table()
    sums, truth = record(here.problem, egvfl(loss="logistic", step=0.3), 15).summed(), here.columns[0]
    found = [correlation(auxiliary(sums, torch.arange(k), truth[:k])[k:], truth[k:]).attack for k in (10, 30)]
    assert found[0] < 0.6 and found[1] > 0.99  # 18 features at three parties


def test_what_is_known_has_to_fit() -> None:
    sent, features = torch.zeros(10, 4), torch.zeros(3, 2)
    with pytest.raises(FedoptError, match=r"the features of three people at least, are needed; \[10, 4\], \[4\]"):
        auxiliary(sent, torch.arange(4), features)
    with pytest.raises(FedoptError, match="three people at least"):
        auxiliary(sent, torch.arange(2), features[:2])
