"""Labels from the sign of what a party is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedopt import compression, keys
from fedopt.strategies.egvfl import egvfl
from fedopt.strategies.egvfl_reference import egvfl_reference
from fedopt.strategies.vertical_gd import vertical_gd
from fedopt.types import FedoptError, Strategy
from fedopt.vfl.inference.sign import sign
from fedopt.vfl.inference.success import accuracy, auc
from fedopt.vfl.noisy import Noisy
from tests.vfl.recorded import DOUBLE, record, table

CASES: list[tuple[str, Strategy]] = [
    ("multipliers", egvfl(loss="logistic", step=0.3)),
    ("multipliers", egvfl(loss="squares", step=0.3)),
    ("multipliers", egvfl(loss="logistic", step=0.3, form="dual")),
    ("change", egvfl_reference(compression.build("none", {}), loss="logistic", step=0.1, refresh=0.5)),
    ("gradient", vertical_gd(loss="logistic", step=1.0)),
    ("gradient", vertical_gd(loss="squares", step=0.1)),
]


def test_gradients_by_hand() -> None:
    labels, told, many = [0, 1, 1, 0], [], []
    for j, y in enumerate(labels):
        z, t = 0.7 * j - 1.0, 2 * y - 1
        told.append([-t / (1 + math.exp(t * z))])
        e = [math.exp(0.3 * j), math.exp(-0.5), math.exp(0.1 * j)]
        many.append([v / sum(e) - (c == 2 * y) for c, v in enumerate(e)])
    found = sign(torch.tensor([told], dtype=DOUBLE))
    assert found.label.tolist() == labels
    assert found.score.tolist() == pytest.approx([-row[0] for row in told])
    assert sign(torch.tensor([many], dtype=DOUBLE)).label.tolist() == [2 * y for y in labels]


def test_exchanges_are_added_up() -> None:
    told = keys.normal(keys.root(0), 5, 30, 1, dtype=DOUBLE)
    wanted = [-sum(float(told[k, j, 0]) for k in range(5)) for j in range(30)]
    found = sign(told)
    assert found.score.tolist() == pytest.approx(wanted)
    assert found.label.tolist() == [int(score > 0) for score in wanted]


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_the_first_message_gives_every_label_and_one_with_noise_few(name: str, strategy: Strategy) -> None:
    here = table()
    plain = sign(record(here.problem, strategy, 3).told(name)[:1])
    attack, baseline = accuracy(plain.label, here.y)
    assert attack == 1.0 and baseline < 0.55
    assert auc(plain.score, here.y).attack == 1.0
    found = []
    for z in (1.0, 10.0):
        noisy = record(here.problem, Noisy(strategy, 0.05, z), 3).told(name)[:1]
        found.append(accuracy(sign(noisy).label, here.y).attack)
    assert max(found) < 0.9 and found[1] < 0.65


def test_of_three_classes() -> None:
    here = table(classes=3)
    for name, strategy in (
        ("multipliers", egvfl(loss="softmax", step=0.3)),
        ("gradient", vertical_gd(loss="softmax", step=1.0)),
    ):
        plain = record(here.problem, strategy, 3).told(name, 3)[:1]
        noisy = record(here.problem, Noisy(strategy, 0.05, 10.0), 3).told(name, 3)[:1]
        assert accuracy(sign(plain).label, here.y).attack == 1.0
        attack, baseline = accuracy(sign(noisy).label, here.y)
        assert attack < baseline + 0.1


def test_noise_on_many_messages_is_averaged_out() -> None:
    """Which is what the sum over messages in the accountant says too."""
    here = table()
    told = record(here.problem, Noisy(egvfl(loss="logistic", step=0.3), 0.05, 0.5), 30).told()
    shares = [accuracy(sign(told[:k]).label, here.y).attack for k in (1, 10, 60)]
    assert shares[0] < 0.65 and shares[0] + 0.1 < shares[1] < shares[2] and shares[2] > 0.95


@pytest.mark.parametrize("told", [torch.zeros(3, 4), torch.zeros(0, 4, 1), torch.zeros(2, 0, 1)])
def test_messages_of_another_shape(told: Tensor) -> None:
    with pytest.raises(FedoptError, match=r"messages `\[exchanges, people, outputs\]` are needed"):
        sign(told)
