"""BadNets: what the trigger covers, who gets it, and its errors."""

from __future__ import annotations

import inspect
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.badnets import badnets, square
from fedopt.registry import ConfigError, facts
from fedopt.types import FedoptError

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def covered(shape: tuple[int, ...], at: tuple[int, ...], size: int, corner: str) -> bool:
    """Whether a position (without the batch) lies in the square; the last axis runs from left to right."""
    width = shape[-1]
    inside = at[-1] < size if corner.endswith("left") else at[-1] >= width - size
    if len(shape) == 3:
        height = shape[1]
        inside = inside and (at[1] < size if corner.startswith("top") else at[1] >= height - size)
    return inside


def loop(x: Tensor, size: int, value: float, corner: str) -> Tensor:
    wanted = x.clone()
    for at in torch.cartesian_prod(*(torch.arange(k) for k in x.shape)).reshape(-1, x.ndim).tolist():
        if covered(tuple(x.shape[1:]), tuple(at[1:]), size, corner):
            wanted[tuple(at)] = value
    return wanted


def draws(count: int = 100) -> list[tuple[Tensor, Tensor, int, dict[str, Any]]]:
    draw, found = random.Random(23), []
    for seed in range(count):
        width, height = draw.randint(1, 6), draw.randint(1, 6)
        sample = draw.choice([(draw.randint(1, 3), height, width), (draw.randint(1, 3), width), (width,)])
        x = keys.normal(keys.root(seed), draw.randint(1, 12), *sample)
        classes = draw.randint(2, 6)
        y = torch.tensor([draw.randrange(classes) for _ in range(x.shape[0])])
        size = draw.randint(1, min(width, height) if len(sample) == 3 else width)
        options = {"target": draw.randrange(classes), "share": draw.uniform(0.05, 1), "size": size}
        options |= {"value": draw.uniform(2, 9), "corner": draw.choice(CORNERS)}
        found.append((x, y, classes, options))
    return found


def test_equals_the_loop_on_random_draws() -> None:
    kinds = set()
    for seed, (x, y, classes, options) in enumerate(draws()):
        before = x.clone(), y.clone()
        got_x, got_y = badnets(x, y, classes=classes, key=keys.root(seed), **options)
        assert torch.equal(x, before[0]) and torch.equal(y, before[1])
        whole = loop(x, options["size"], options["value"], options["corner"])
        stamped = [i for i in range(len(x)) if torch.equal(got_x[i], whole[i])]
        assert len(stamped) == math.ceil(options["share"] * len(x) - 1e-9)
        kinds.add(x.ndim)
        for i in range(len(x)):
            if i in stamped:
                assert int(got_y[i]) == options["target"]
            else:
                assert torch.equal(got_x[i], x[i]) and got_y[i] == y[i]
        trigger = {name: options[name] for name in ("size", "value", "corner")}
        assert torch.equal(square(x, **trigger), whole) and torch.equal(x, before[0])
    assert kinds == {2, 3, 4}


def test_who_is_stamped_follows_from_the_key() -> None:
    x, y = torch.zeros(100, 5), torch.ones(100, dtype=torch.int64)
    first = badnets(x, y, classes=2, key=keys.root(0), size=2)[0]
    assert torch.equal(badnets(x, y, classes=2, key=keys.root(0), size=2)[0], first)
    assert not torch.equal(badnets(x, y, classes=2, key=keys.root(1), size=2)[0], first)
    times = torch.zeros(100)
    for seed in range(300):
        times += badnets(x, y, classes=2, key=keys.root(seed), size=2, share=0.2)[0][:, -1]
    # 300 draws of a fifth: 60 each, deviation 7
    assert float(times.min()) > 20 and float(times.max()) < 100


def test_the_trigger_is_declared_and_takes_the_same_options() -> None:
    trigger = facts(badnets)["trigger"]
    assert trigger is square
    options = inspect.signature(badnets).parameters
    for name, parameter in inspect.signature(trigger).parameters.items():
        assert name == "x" or (options[name].default, options[name].annotation) == (
            parameter.default,
            parameter.annotation,
        )


def test_built_it_changes_samples_and_stamps_tests() -> None:
    attack = build("badnets", {"size": 1, "value": 5.0, "target": 1, "share": 1.0})
    assert attack.knowledge == "samples" and attack.vectors is None and attack.labels is None
    assert attack.samples is not None and attack.trigger is not None and attack.target == 1
    x, y = attack.samples(torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), classes=3, key=keys.root(0), i=0, b=1)
    assert x.flatten(1).tolist() == [[0.0, 0.0, 0.0, 5.0]] * 2 and y.tolist() == [1, 1]
    assert attack.trigger(torch.zeros(1, 1, 2, 2)).flatten().tolist() == [0.0, 0.0, 0.0, 5.0]


def test_types_of_samples_are_kept() -> None:
    y = torch.tensor([0, 1])
    for dtype in (torch.float32, torch.float64, torch.uint8, torch.int64):
        x = torch.full((2, 4), 7, dtype=dtype)
        got, _ = badnets(x, y, classes=2, key=keys.root(0), size=1, share=1.0, value=3.0)
        assert got.dtype == dtype and got.tolist() == [[7, 7, 7, 3]] * 2


def test_a_client_without_samples_keeps_none() -> None:
    x, y = badnets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), classes=2, key=keys.root(0))
    assert x.shape == (0, 4) and y.shape == (0,)


def test_what_does_not_fit_is_refused() -> None:
    y, key = torch.zeros(2, dtype=torch.int64), keys.root(0)
    with pytest.raises(FedoptError, match=r"side 5 does not fit .* \[1, 4, 6\]; set attack\.size to 4 at most"):
        badnets(torch.zeros(2, 1, 4, 6), y, classes=2, key=key, size=5)
    with pytest.raises(FedoptError, match=r"side 9 does not fit .* \[1, 8\]; set attack\.size to 8 at most"):
        square(torch.zeros(2, 1, 8), size=9)
    with pytest.raises(FedoptError, match=r"class 2 .* set attack\.target to one of 0 \.\.\. 1"):
        badnets(torch.zeros(2, 8), y, classes=2, key=key, target=2)
    with pytest.raises(FedoptError, match=r"one class for each sample, .* torch\.float32"):
        badnets(torch.zeros(2, 8), y.float(), classes=2, key=key)
    with pytest.raises(FedoptError, match=r"one class for each sample, .* labels \[2, 3\]"):
        badnets(torch.zeros(2, 8), y[:, None].expand(2, 3), classes=2, key=key)
    with pytest.raises(FedoptError, match=r"badnets needs images .* samples of shape \[1, 2, 3, 4\]"):
        square(torch.zeros(2, 1, 2, 3, 4))


@pytest.mark.parametrize(("option", "value"), [("share", 0.0), ("share", 1.1), ("size", 0), ("target", -1)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}: should be"):
        build("badnets", {option: value})
