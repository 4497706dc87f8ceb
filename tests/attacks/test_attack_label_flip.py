"""Label flipping: what each mode does, how often, and its errors."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.label_flip import label_flip
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def draws(classes: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = random.Random(seed)
    return torch.tensor([draw.randrange(classes) for _ in range(size)]), keys.root(seed)


def test_cyclic_and_targeted_equal_the_loop_on_random_draws() -> None:
    for seed in range(100):
        classes = 2 + seed % 7
        labels, key = draws(classes, 20, seed)
        source, target = seed % classes, (seed + 1 + seed // 7 % (classes - 1)) % classes
        cyclic, targeted = [], []
        for y in labels.tolist():
            cyclic.append(0 if y == classes - 1 else y + 1)
            targeted.append(target if y == source else y)
        assert label_flip(labels, classes=classes, key=key, mode="cyclic").tolist() == cyclic
        got = label_flip(labels, classes=classes, key=key, mode="targeted", source=source, target=target)
        assert got.tolist() == targeted


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_other_classes_are_equally_likely_and_never_the_right_one(classes: int) -> None:
    labels, key = draws(classes, 40_000, 1)
    flipped = label_flip(labels, classes=classes, key=key)
    assert not bool((flipped == labels).any())
    for y in range(classes):
        counts = torch.bincount(flipped[labels == y], minlength=classes).double()
        shares = counts / counts.sum()
        sigma = (1 / (classes - 1) / float(counts.sum())) ** 0.5
        for c in range(classes):
            assert shares[c].item() == pytest.approx(0.0 if c == y else 1 / (classes - 1), abs=5 * sigma)


def test_random_draws_all_classes_whatever_the_label() -> None:
    labels, key = draws(4, 40_000, 2)
    flipped = label_flip(labels, classes=4, key=key, mode="random")
    for y in range(4):
        counts = torch.bincount(flipped[labels == y], minlength=4).double()
        assert bool(((counts / counts.sum() - 0.25).abs() < 0.025).all())


@pytest.mark.parametrize("mode", ["other", "random"])
def test_the_key_decides(mode: str) -> None:
    labels, key = draws(10, 50, 3)
    attack = build("label_flip", {"mode": mode})
    assert attack.labels is not None and attack.vectors is None and attack.knowledge == "data"
    once, twice = attack.labels(labels, 10, key), attack.labels(labels, 10, key)
    assert torch.equal(once, twice)
    assert not torch.equal(once, attack.labels(labels, 10, keys.root(4)))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "targeted"},
        {"mode": "targeted", "source": 1},
        {"mode": "targeted", "source": 1, "target": 1},
        {"source": 1, "target": 2},
        {"mode": "cyclic", "target": 2},
    ],
)
def test_source_and_target_go_with_targeted(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^attack\[0\]: label_flip: "):
        build("label_flip", options, "attack[0]")


def test_what_is_no_class_of_the_task_is_refused() -> None:
    labels, key = draws(5, 20, 5)
    with pytest.raises(
        FedoptError, match=r"target = 7 is no class of this task; set attack.target to one of 0 \.\.\. 4"
    ):
        label_flip(labels, classes=5, key=key, mode="targeted", source=1, target=7)
    with pytest.raises(FedoptError, match=r"needs labels in 0 \.\.\. 2; they reach from 0 to 4"):
        label_flip(labels, classes=3, key=key)
    with pytest.raises(FedoptError, match=r"2 classes or more; labels of type torch\.float32"):
        label_flip(labels.float(), classes=5, key=key)
    with pytest.raises(FedoptError, match="1 classes were given"):
        label_flip(torch.zeros(3, dtype=torch.int64), classes=1, key=key)
