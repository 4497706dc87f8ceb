"""Figures of an evaluation against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from fedopt.engine.evaluate import scores


@pytest.mark.parametrize("seed", range(5))
def test_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = rng.choice([0, 1, 3], size=200)  # class 2 is held by nobody
    predicted = np.where(rng.random(200) < 0.6, true, rng.integers(0, 4, size=200))
    found = scores(torch.from_numpy(confusion_matrix(true, predicted, labels=range(4))), ("n", "s", "v", "f"))
    recall = recall_score(true, predicted, labels=[0, 1, 3], average=None)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found["recall"] == {
        "n": pytest.approx(recall[0]),
        "s": pytest.approx(recall[1]),
        "v": None,
        "f": pytest.approx(recall[2]),
    }
    assert found["g_mean"] == pytest.approx(np.prod(recall) ** (1 / 3))
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, labels=[0, 1, 3], average="macro"))


def test_a_class_never_recalled_makes_the_g_mean_zero() -> None:
    found = scores(torch.tensor([[5, 0], [3, 0]]), ("a", "b"))
    assert found["g_mean"] == 0.0 and found["recall"] == {"a": 1.0, "b": 0.0}


def test_many_classes_give_no_list() -> None:
    names = tuple(map(str, range(60)))
    assert set(scores(torch.eye(60, dtype=torch.int64), names)) == {"accuracy"}
