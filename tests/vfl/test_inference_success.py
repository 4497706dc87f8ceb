"""How guesses are judged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.types import FedoptError
from fedopt.vfl.inference.success import Success, accuracy, auc, correlation, entries, matched
from tests.vfl.recorded import DOUBLE


def coins(seed: int, *shape: int, share: float = 0.5) -> Tensor:
    return (keys.uniform(keys.root(seed), *shape, dtype=DOUBLE) < share).to(DOUBLE)


def test_accuracy_and_auc_by_loops() -> None:
    truth = coins(0, 50, share=0.3).to(torch.int64)
    guess, score = coins(1, 50).to(torch.int64), keys.normal(keys.root(2), 50, dtype=DOUBLE).round()
    right = sum(a == b for a, b in zip(guess.tolist(), truth.tolist(), strict=True)) / 50
    assert accuracy(guess, truth) == Success(right, float(max(truth.sum(), 50 - truth.sum())) / 50)
    pairs = [
        float(a > b) + 0.5 * float(a == b)
        for a, b in itertools.product(score[truth == 1].tolist(), score[truth == 0].tolist())
    ]
    assert auc(score, truth) == (pytest.approx(sum(pairs) / len(pairs)), 0.5)


def test_correlation_by_loops() -> None:
    truth, guess = (keys.normal(keys.root(seed), 30, 4, dtype=DOUBLE) for seed in (0, 1))
    guess = guess + truth
    truth[:, 1] = 5.0  # such a column does not count
    guess[:, 2] = 1.0  # and such a guess counts as 0
    each = []
    for column in (0, 2, 3):
        a, b = (x[:, column].tolist() for x in (guess, truth))
        ma, mb = sum(a) / 30, sum(b) / 30
        top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
        bottom = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
        each.append(top / bottom if bottom else 0.0)
    assert correlation(guess, truth) == (pytest.approx(sum(each) / 3), 0.0)


def test_entries_round_and_compare() -> None:
    truth = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    guess = torch.tensor([[0.1, 0.9], [0.6, 2.0], [1.2, -0.3], [-0.2, 0.4]])
    assert entries(guess, truth) == Success(6 / 8, (0.75 + 0.5) / 2)


@pytest.mark.parametrize("complements", [False, True])
@pytest.mark.parametrize("k", [0, 2, 3, 5])
def test_guesses_are_given_to_columns_as_favours_the_attack(k: int, complements: bool) -> None:
    truth, guess = coins(0, 20, 3, share=0.7), coins(1, 20, k)
    commonest = [max(float(c.mean()), 1 - float(c.mean())) for c in truth.T]
    best = 0.0
    for chosen in itertools.permutations([*range(k), None, None, None], 3):
        each = []
        for column, g in enumerate(chosen):
            share = commonest[column] if g is None else float((guess[:, g] == truth[:, column]).double().mean())
            each.append(max(share, 1 - share) if complements and g is not None else share)
        if sum(g is not None for g in chosen) == min(k, 3):
            right = [0.0 if g is None else e for e, g in zip(each, chosen, strict=True)]
            if sum(right) > best or k == 0:
                best, wanted = sum(right), sum(each) / 3
    found = matched(guess, truth, complements=complements)
    assert found == (pytest.approx(wanted), pytest.approx(sum(commonest) / 3))


@pytest.mark.parametrize("measure", [accuracy, auc, correlation, entries])
def test_as_many_guesses_as_true_values_are_needed(measure: Callable[[Tensor, Tensor], Success]) -> None:
    with pytest.raises(FedoptError, match=rf"{measure.__name__} compares guesses with as many true values; \[3, 2\]"):
        measure(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(FedoptError, match=r"columns of the same people are compared; \[3, 2\] and \[4, 2\]"):
        matched(torch.zeros(3, 2), torch.zeros(4, 2))
