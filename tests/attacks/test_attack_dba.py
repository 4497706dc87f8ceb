"""The distributed backdoor: its bars against the published ones and a loop, who stamps which, and its errors."""

from __future__ import annotations

import inspect
import math
import random

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import build
from fedopt.attacks.dba import bars, dba
from fedopt.registry import ConfigError, facts
from fedopt.types import FedoptError

# published with the paper's code: pixels [row, column] of the four parts
DIGITS = [
    [[0, 0], [0, 1], [0, 2], [0, 3]],
    [[0, 6], [0, 7], [0, 8], [0, 9]],
    [[3, 0], [3, 1], [3, 2], [3, 3]],
    [[3, 6], [3, 7], [3, 8], [3, 9]],
]
CIFAR = [
    [[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]],
    [[0, 9], [0, 10], [0, 11], [0, 12], [0, 13], [0, 14]],
    [[4, 0], [4, 1], [4, 2], [4, 3], [4, 4], [4, 5]],
    [[4, 9], [4, 10], [4, 11], [4, 12], [4, 13], [4, 14]],
]


@pytest.mark.parametrize(("published", "side", "options"), [(DIGITS, 28, {}), (CIFAR, 32, {"size": 6, "gap": 3})])
def test_the_published_triggers(published: list[list[list[int]]], side: int, options: dict[str, int]) -> None:
    x, y = torch.zeros(1, 3, side, side), torch.ones(1, dtype=torch.int64)
    for i, pixels in enumerate(published):
        got, _ = dba(x, y, classes=2, key=keys.root(0), i=i, share=1.0, **options)
        for channel in got[0]:
            assert channel.nonzero().tolist() == pixels
    everything = [pixel for pixels in published for pixel in pixels]
    whole = bars(x, **options)
    assert sorted(whole[0, 2].nonzero().tolist()) == sorted(everything)


def positions(kind: int, k: int, size: int, gap: int) -> list[tuple[int, ...]]:
    """Places of bar k: (row, column) in an image, (column,) in a sequence or a vector."""
    if kind == 4:
        return [(k // 2 * (gap + 1), k % 2 * (size + gap) + c) for c in range(size)]
    return [(k * (size + gap) + c,) for c in range(size)]


def loop(x: Tensor, which: list[int], size: int, gap: int, value: float) -> Tensor:
    wanted = x.clone()
    for sample in wanted:
        for k in which:
            for at in positions(x.ndim, k, size, gap):
                for channel in sample if x.ndim > 2 else [sample]:
                    channel[at] = value
    return wanted


def test_equals_the_loop_on_random_draws() -> None:
    draw, kinds = random.Random(24), set()
    for seed in range(100):
        parts, size, gap = draw.randint(1, 5), draw.randint(1, 3), draw.randint(0, 2)
        ndim = draw.choice([2, 3, 4])
        width = (2 if ndim == 4 else parts) * (size + gap) + draw.randint(0, 2)
        height = (parts + 1) // 2 * (gap + 1)
        shape = {2: (width,), 3: (2, width), 4: (2, height, width)}[ndim]
        x = keys.normal(keys.root(seed), draw.randint(1, 9), *shape)
        y = torch.tensor([draw.randrange(3) for _ in range(x.shape[0])])
        before, i, share = x.clone(), draw.randint(0, 9), draw.uniform(0.05, 1)
        sizes = {"parts": parts, "size": size, "gap": gap, "value": 7.0}
        got_x, got_y = dba(x, y, classes=3, key=keys.root(seed), i=i, share=share, target=2, **sizes)  # type: ignore[arg-type]
        part = loop(x, [i % parts], size, gap, 7.0)
        stamped = [j for j in range(len(x)) if torch.equal(got_x[j], part[j])]
        assert len(stamped) == math.ceil(share * len(x) - 1e-9)
        for j in range(len(x)):
            if j in stamped:
                assert got_y[j] == 2
            else:
                assert torch.equal(got_x[j], x[j]) and got_y[j] == y[j]
        assert torch.equal(bars(x, **sizes), loop(x, list(range(parts)), size, gap, 7.0))  # type: ignore[arg-type]
        assert torch.equal(x, before)
        kinds.add(ndim)
    assert kinds == {2, 3, 4}


def test_attackers_together_stamp_the_whole_trigger() -> None:
    x, y = torch.zeros(3, 1, 10, 10), torch.ones(3, dtype=torch.int64)
    parts = [dba(x, y, classes=2, key=keys.root(i), i=i, share=1.0)[0] for i in range(6)]
    assert torch.equal(parts[4], parts[0]) and not torch.equal(parts[1], parts[0])
    assert torch.equal(torch.stack(parts[:4]).amax(0), bars(x))


def test_the_trigger_is_declared_and_takes_the_same_options() -> None:
    trigger = facts(dba)["trigger"]
    assert trigger is bars
    options = inspect.signature(dba).parameters
    for name, parameter in inspect.signature(trigger).parameters.items():
        assert name == "x" or (options[name].default, options[name].annotation) == (
            parameter.default,
            parameter.annotation,
        )


def test_built_it_changes_samples_and_stamps_tests() -> None:
    attack = build("dba", {"parts": 2, "size": 1, "gap": 1, "target": 1, "share": 1.0})
    assert attack.knowledge == "samples" and attack.samples is not None and attack.trigger is not None
    assert attack.target == 1
    x, y = attack.samples(torch.zeros(1, 4), torch.tensor([0]), classes=2, key=keys.root(0), i=3, b=5)
    assert x.tolist() == [[0.0, 0.0, 1.0, 0.0]] and y.tolist() == [1]
    assert attack.trigger(torch.zeros(1, 4)).tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_what_does_not_fit_is_refused() -> None:
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(FedoptError, match=r"4 bars takes 4 x 10, more than samples of shape \[1, 8, 8\]"):
        bars(torch.zeros(2, 1, 8, 8))
    with pytest.raises(FedoptError, match=r"6 bars takes 7 x 10, .* \[1, 6, 10\] have; lower attack\.parts"):
        bars(torch.zeros(2, 1, 6, 10), parts=6)
    with pytest.raises(FedoptError, match=r"4 bars takes 1 x 22, more than samples of shape \[21\]"):
        dba(torch.zeros(2, 21), y, classes=2, key=keys.root(0), i=0)
    bars(torch.zeros(2, 22))
    bars(torch.zeros(2, 1, 4, 10))
    with pytest.raises(FedoptError, match=r"class 2 .* set attack\.target to one of 0 \.\.\. 1"):
        dba(torch.zeros(2, 22), y, classes=2, key=keys.root(0), i=0, target=2)
    with pytest.raises(FedoptError, match="dba needs images"):
        bars(torch.zeros(2))


@pytest.mark.parametrize(("option", "value"), [("parts", 0), ("size", 0), ("gap", -1), ("share", 0.0)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}: should be"):
        build("dba", {option: value})
