"""The tasks of the benchmarks: the same network, data and arithmetic for every arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import counted, nets, tasks
from bench.arms import fedopt as fedopt_arm
from bench.arms import plain
from fedopt import keys, models


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Six clients of 20 digits, all in each round, a whole local epoch in one batch: nothing depends on the order."""
    task = dataclasses.replace(tasks.TASKS["mlp-10"], name="small", clients=6, cohort=6, batch=20)
    monkeypatch.setitem(tasks.TASKS, "small", task)
    monkeypatch.setattr(tasks, "CACHE", tmp_path)
    tasks.make("small")
    return "small"


@pytest.mark.parametrize(
    ("net", "inputs", "classes", "options", "vocabulary"),
    [
        ("mlp", (64,), 10, {}, None),
        ("cnn", (3, 12, 12), 10, {}, None),
        ("resnet1d", (1, 150), 5, {"width": 8}, None),
        ("char_lstm", (7,), 11, {"hidden": 128, "layers": 1}, 11),
    ],
)
def test_the_networks_are_those_of_fedopt(
    net: str, inputs: tuple[int, ...], classes: int, options: dict[str, int], vocabulary: int | None
) -> None:
    ours = nets.NETS[net](inputs, classes)
    theirs = models.build(
        net, options, inputs=inputs, classes=classes, vocabulary=vocabulary, key=keys.root(1), dtype=torch.float32
    )
    shapes = {name: tuple(value.shape) for name, value in theirs.named_parameters()}
    assert {name: tuple(value.shape) for name, value in ours.named_parameters()} == shapes
    with torch.no_grad():
        for name, value in ours.named_parameters():
            value.copy_(theirs.get_parameter(name))
        x = torch.randint(0, classes, (3, *inputs)) if vocabulary else torch.randn(3, *inputs)
        torch.testing.assert_close(ours(x), theirs(x))


def test_the_cnn_has_the_size_of_the_benchmark() -> None:
    assert sum(p.numel() for p in nets.NETS["cnn"]((3, 32, 32), 10).parameters()) == 1_626_442


def test_the_fused_lstm_is_the_same_function() -> None:
    scan, fused = nets.NETS["char_lstm"]((9,), 13), nets.NETS["char_lstm"]((9,), 13, fused=True)
    names = [name for name, _ in scan.named_parameters()]
    fused.load_state_dict(dict(zip(nets.fused_names(names), scan.state_dict().values(), strict=True)))
    tokens = torch.randint(0, 13, (4, 9))
    torch.testing.assert_close(scan(tokens), fused(tokens))


def test_a_task_is_the_same_for_everybody(small: str) -> None:
    task = tasks.load(small)
    assert task.clients == task.cohort == 6
    assert (task.offsets[1:] - task.offsets[:-1]).tolist() == [20] * 6
    assert len(task.x) == 1437 and len(task.test_y) == 360  # the training part, and what is held out of it
    again = tasks.load(small)
    assert torch.equal(task.index, again.index)
    assert all(torch.equal(value, again.initial[name]) for name, value in task.initial.items())
    assert [name for name, _ in task.net().named_parameters()] == list(task.initial)


def test_a_changed_definition_is_made_anew(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tasks.make(small)
    before = path.stat().st_mtime_ns
    assert tasks.make(small).stat().st_mtime_ns == before
    monkeypatch.setitem(tasks.TASKS, small, dataclasses.replace(tasks.TASKS[small], clients=7, cohort=7))
    tasks.make(small)
    assert tasks.load(small).clients == 7


def test_a_walk_is_one_epoch_or_so_many_batches(small: str) -> None:
    task = tasks.load(small)
    own = task.index[40:60].tolist()
    walk = task.walk(2, np.random.default_rng(0)).tolist()
    assert sorted(walk) == sorted(own) and walk != own
    cycling = dataclasses.replace(task, task=dataclasses.replace(task.task, batch=8, steps=6))
    walk = cycling.walk(2, np.random.default_rng(0)).tolist()
    assert len(walk) == 48 and sorted(walk[:20]) == sorted(own) == sorted(walk[20:40])


def test_an_absent_task_says_how_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CACHE", tmp_path)
    with pytest.raises(SystemExit, match=r"python -m bench\.tasks mlp-10"):
        tasks.load("mlp-10")


def test_the_plain_loop_and_fedopt_compute_the_same(small: str) -> None:
    task = tasks.load(small)
    loop = plain.Federation(task, threads=1, processes=1, fused=False)
    run = fedopt_arm.Run(task, {"name": "serial"})
    accuracy, rounds = loop.accuracy(3)
    assert (accuracy, rounds) == run.accuracy(3)
    flat = torch.cat([value.flatten() for value in loop.model])
    torch.testing.assert_close(run.last.state.model["params"], flat, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(flat, by_hand(task, 3), rtol=1e-4, atol=1e-6)


def by_hand(task: tasks.Loaded, rounds: int) -> Tensor:
    """Full-batch FedAvg of equal clients: the mean of each client's single step."""
    module = task.net()
    for _ in range(rounds):
        before = [p.detach().clone() for p in module.parameters()]
        mean = [torch.zeros_like(p) for p in before]
        for client in range(task.clients):
            own = task.index[20 * client : 20 * client + 20]
            module.zero_grad()
            nets.loss(module(task.x[own]), task.y[own]).backward()
            for total, p in zip(mean, module.parameters(), strict=True):
                assert p.grad is not None
                total += p.grad / task.clients
        with torch.no_grad():
            for p, value, step in zip(module.parameters(), before, mean, strict=True):
                p.copy_(value - task.task.lr * step)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_null_work_moves_every_client(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    null = dataclasses.replace(tasks.load(small), task=dataclasses.replace(tasks.TASKS[small], work="null"))
    for executor in ("serial", "stacked"):
        run = fedopt_arm.Run(null, {"name": executor})
        run.rounds(2)
        assert run.last.replies.clients.tolist() == list(range(6))
        assert run.last.replies.vectors["delta"].shape == (1, 4810)
        assert run.facts()["serialised_bytes"] == 0


def test_the_operations_of_a_round_are_counted(small: str) -> None:
    task = tasks.load(small)
    # forward both layers; backward the weights of both, and the inputs of the second alone
    one = 2 * 20 * (2 * 64 * 64 + 3 * 64 * 10)
    assert counted.round_flops(task) == one * 6
    assert counted.round_bytes(task) == 6 * (2 * 4 * 4810 + 20 * 64 * 4)
