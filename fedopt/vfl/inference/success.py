"""How good guesses of labels and of features are, beside those of somebody who has seen no message."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedopt.types import FedoptError


class Success(NamedTuple):
    """Of an attack, and of the best guess without messages."""

    attack: float
    baseline: float


def accuracy(guess: Tensor, truth: Tensor) -> Success:
    """Share of people whose label `[m]` was guessed; the baseline says the commonest label of everybody."""
    _alike("accuracy", guess, truth)
    commonest = torch.unique(truth, return_counts=True)[1].max()
    return Success(float((guess == truth).double().mean()), float(commonest) / truth.numel())


def auc(score: Tensor, truth: Tensor) -> Success:
    """Probability that a person of class 1 is scored `[m]` above one of class 0; the baseline is a coin, 1/2."""
    _alike("auc", score, truth)
    return Success(float(roc_auc_score(truth.numpy(), score.numpy())), 0.5)


def correlation(guess: Tensor, truth: Tensor) -> Success:
    """Pearson's correlation of guessed and true columns `[m, d]`, its mean over the columns that are not constant.

    A column guessed as a constant has 0, and so has the baseline, which says the mean of a column for everybody.
    """
    _alike("correlation", guess, truth)
    a, b = (x.double() - x.double().mean(dim=0) for x in (guess, truth))
    spread = a.norm(dim=0) * b.norm(dim=0)
    each = torch.where(spread > 0, (a * b).sum(dim=0) / spread.clamp(min=1e-300), 0.0)
    return Success(float(each[b.norm(dim=0) > 0].mean()), 0.0)


def entries(guess: Tensor, truth: Tensor) -> Success:
    """Share of right entries of binary columns, guess `[m, d]`; the baseline says each column's commonest value."""
    _alike("entries", guess, truth)
    return Success(float((guess.round() == truth).double().mean()), _commonest(truth))


def matched(guess: Tensor, truth: Tensor, *, complements: bool = False) -> Success:
    """Share of right entries of binary columns `[m, d]` from guesses `[m, k]` in any order, none of them used twice.

    Guesses are given to columns so that the share is largest, in favour of the attack; columns without a guess count
    as the baseline does, each column's commonest value. complements: a guess of 1 - column counts as the column.
    """
    if guess.dim() != 2 or truth.dim() != 2 or guess.shape[0] != truth.shape[0]:
        raise FedoptError(f"columns of the same people are compared; {_shapes(guess, truth)} were given")
    right = (guess.double()[:, :, None] == truth.double()[:, None, :]).double().mean(dim=0)
    if complements:
        right = torch.maximum(right, 1.0 - right)
    each = torch.maximum(truth.double().mean(dim=0), 1.0 - truth.double().mean(dim=0))
    rows, columns = linear_sum_assignment(right.numpy(), maximize=True)
    found = each.clone()
    found[torch.as_tensor(columns)] = right[torch.as_tensor(rows), torch.as_tensor(columns)]
    return Success(float(found.mean()), _commonest(truth))


def _commonest(truth: Tensor) -> float:
    ones = truth.double().mean(dim=0)
    return float(torch.maximum(ones, 1.0 - ones).mean())


def _alike(measure: str, guess: Tensor, truth: Tensor) -> None:
    if guess.shape != truth.shape:
        raise FedoptError(f"{measure} compares guesses with as many true values; {_shapes(guess, truth)} were given")


def _shapes(guess: Tensor, truth: Tensor) -> str:
    return f"{list(guess.shape)} and {list(truth.shape)}"
