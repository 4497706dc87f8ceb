"""Clients that answer nonsense, and clients whose work fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fedopt
from fedopt.data import Dataset, Split
from fedopt.engine import loop
from fedopt.engine.checkpoint import newest
from fedopt.engine.serial import ClientError

Write = Callable[..., Path]
CLASSES = ("a", "b", "c")


def dataset(clients: int, spoilt: dict[int, float] | None = None) -> Dataset:
    """12 samples with 5 features at each client; all features of a spoilt client have that value."""
    draw = torch.Generator().manual_seed(3)
    # the samples of a client do not depend on how many there are
    x = torch.randn(72, 5, generator=draw)[: clients * 12]
    y = torch.randint(0, 3, (72,), generator=draw)[: clients * 12]
    groups = torch.arange(clients).repeat_interleave(12)
    for client, value in (spoilt or {}).items():
        x[groups == client] = value
    test = Split(torch.randn(30, 5, generator=draw), torch.randint(0, 3, (30,), generator=draw))
    names = tuple(f"hospital {i}" for i in range(clients))
    return Dataset(x, y, CLASSES, test=test, groups=groups, group_names=names)


def experiment(data: Dataset, **parts: Any) -> fedopt.Experiment:
    defaults: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [4]},
        "strategy": {"name": "fedavg", "batch_size": 0, "steps": 2},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "run_options": {"rounds": 3},
        "data_options": {"partition": "natural"},
    }
    return fedopt.Experiment(data=data, **{**defaults, **parts})


@pytest.mark.parametrize("executor", ["stacked", "serial"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fednova"])
def test_what_is_not_finite_is_rejected_by_name_and_never_averaged(
    executor: str, value: float, strategy: str, tmp_path: Path
) -> None:
    parts = {"executor": executor, "strategy": {"name": strategy, "batch_size": 0, "steps": 2}}
    result = experiment(dataset(4, {3: value}), **parts).run(tmp_path / "four")
    others = experiment(dataset(3), **parts).run(tmp_path / "three")
    for line, other in zip(result.history, others.history, strict=True):
        assert (line["asked"], line["answered"], line["clients"]) == (4, 3, [0, 1, 2])
        ((rejected),) = line["rejected"]
        assert rejected["client"] == 3
        assert rejected["reason"].endswith("of 39 entries of its delta are NaN or Inf")
        assert line["bytes_up"] * 3 == other["bytes_up"] * 4, "it was sent, so it counts"
        if strategy != "scaffold" or line["round"] == 1:  # its control variate averages over all clients, asked or not
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
    assert result.model is not None and others.model is not None
    if strategy != "scaffold":
        torch.testing.assert_close(result.model, others.model)
    assert all(torch.isfinite(value).all() for value in result.model.values())
    assert all(torch.isfinite(value).all() for value in result.state.own.values())


def test_a_rejected_clients_memory_is_not_committed(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"strategy": {"name": "scaffold", "batch_size": 0}, "run_options": {"rounds": 2}}
    experiment(dataset(4, {1: float("nan")}), **parts).run(tmp_path)
    last = newest(tmp_path / "checkpoints")
    assert last is not None
    memory = load_file(last / "memory.safetensors")
    assert memory["clients"].tolist() == [0, 2, 3]
    assert torch.isfinite(memory["row.control"]).all() and memory["row.control"].shape == (3, 39)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fednova", "ditto", "fedprox"])
def test_when_all_are_rejected_the_model_stays_and_the_record_says_so(strategy: str, tmp_path: Path) -> None:
    nan = float("nan")
    parts = {"strategy": {"name": strategy, "batch_size": 0, "server": {"name": "adam", "lr": 0.1}}}
    result = experiment(dataset(3, {0: nan, 1: nan, 2: nan}), **parts).run(tmp_path)
    assert result.status == "finished"
    assert [line["info"]["kept_model"] for line in result.history] == ["no answer was accepted"] * 3
    assert [len(line["rejected"]) for line in result.history] == [3] * 3
    assert result.state.model["params"].equal(result.setup.problem.initial["params"])
    assert [line["round"] for line in result.history] == [1, 2, 3]


def test_too_few_left_for_the_rule(tmp_path: Path) -> None:
    result = experiment(dataset(5, {2: float("inf")}), aggregator={"name": "krum", "f": 1}).run(tmp_path)
    for line in result.history:
        assert "n >= 2f + 3" in line["info"]["kept_model"] and "4 were given" in line["info"]["kept_model"]
    assert result.state.model["params"].equal(result.setup.problem.initial["params"])


def test_attackers_that_send_infinities_are_rejected_too(tmp_path: Path) -> None:
    attack = [{"name": "sign_flip", "clients": [1], "scale": 1e39}]
    result = experiment(dataset(4), attack=attack).run(tmp_path)
    assert [[r["client"] for r in line["rejected"]] for line in result.history] == [[1]] * 3
    assert result.model is not None and all(torch.isfinite(value).all() for value in result.model.values())


class Fussy(nn.Module):
    """A linear model that fails on inputs of 77, as a real one does on a patient without a heartbeat."""

    def __init__(self, fussy: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.fussy = fussy

    def forward(self, x: Tensor) -> Tensor:
        if self.fussy and bool((x == 77).any()):
            raise ArithmeticError("no heartbeat in this recording")
        out: Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("executor", ["serial", "stacked"])
def test_a_failing_client_is_named_and_what_was_done_is_kept(executor: str, tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "executor": executor,
        "participation": {"name": "uniform", "count": 2},
        "run_options": {"rounds": 8, "seed": 4},
        "strategy": {"name": "scaffold", "batch_size": 4},
    }
    who = [line["clients"] for line in experiment(dataset(6), **parts).run(tmp_path / "who").history]
    late = max(range(6), key=lambda client: next((i for i, c in enumerate(who) if client in c), -1))
    first = next(i for i, clients in enumerate(who) if late in clients)
    assert first >= 2
    spoilt = dataset(6, {late: 77.0})
    with pytest.raises(ClientError) as error:
        experiment(spoilt, model=Fussy(), **parts).run(tmp_path / "part")
    message = str(error.value)
    assert f"exchange {first}: client {late} (hospital {late}) failed in program 'train' at step 0" in message
    assert "ArithmeticError: no heartbeat in this recording" in message
    assert isinstance(error.value.__cause__, ArithmeticError)
    about = json.loads((tmp_path / "part" / "run.json").read_text())
    assert about["status"] == "failed" and about["reason"] == f"ClientError: {message}"
    assert [path.name for path in (tmp_path / "part" / "checkpoints").iterdir()] == [f"{first:08d}"]
    assert len((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()) == first
    # mended, it goes on where it was
    resumed = experiment(spoilt, model=Fussy(False), **parts).resume(tmp_path / "part")
    assert resumed.status == "finished" and len(resumed.history) == 8
    whole = experiment(spoilt, model=Fussy(False), **parts).run(tmp_path / "whole")
    assert resumed.model is not None and whole.model is not None
    torch.testing.assert_close(resumed.model, whole.model)


OWN = """
import torch
from torch import nn

class net(nn.Module):
    def __init__(self, *, inputs, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)
    def forward(self, x):
        if self.training and x.shape[0] == 13:
            raise ValueError("13 samples are too many")
        return self.layer(x.flatten(1))
"""


def test_the_command_line_names_the_client_and_shows_how_to_look(
    fedopt: Callable[..., Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    config = write(
        {
            "run": {"rounds": 2, "out": "run"},
            # 1437 samples over 110 clients: 7 of them have 14, the others 13
            "data": {"name": "digits", "clients": 110},
            "model": {"name": "own_net_of_a_test:net"},
            "strategy": {"name": "fedavg", "batch_size": 0},
            "executor": {"name": "serial"},
            "optimizer": {"name": "sgd", "lr": 0.1},
        }
    )
    ran = fedopt("run", config, "--quiet")
    assert ran.status == 2 and "Traceback" not in ran.err
    assert "failed in program 'train' at step 0: ValueError: 13 samples are too many" in ran.err
    hint = re.search(r"look at it with: fedopt replay run --exchange 0 --client (\d+)", ran.err)
    assert hint is not None
    client = hint[1]
    again = fedopt("replay", "run", "--exchange", 0, "--client", client)
    assert again.status == 2 and f"client {client} (client {client}) failed in program 'train'" in again.err


@pytest.mark.parametrize("executor", ["stacked", "serial"])
@pytest.mark.parametrize("attack", ["ipm", "random_gradients"])
def test_attackers_that_do_not_work_change_nothing_but_what_is_known_of_their_loss(
    executor: str, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: dict[str, Any] = {"executor": executor, "attack": [{"name": attack, "clients": [1, 4]}]}
    idle = experiment(dataset(6), **parts).run(tmp_path / "idle")
    monkeypatch.setattr(loop, "_reads_rows_alone", lambda *given: False)
    working = experiment(dataset(6), **parts).run(tmp_path / "working")
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("idle", "working")]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-5, atol=1e-6)
    for line, other in zip(idle.history, working.history, strict=True):
        assert line["client_steps"] == [2, 0, 2, 2, 0, 2] and other["client_steps"] == [2] * 6
        losses = [loss for i, loss in enumerate(other["client_loss"]) if i not in (1, 4)]
        assert [line["client_loss"][i] for i in (1, 4)] == [None, None]
        assert line["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
        assert (line["answered"], line["bytes_up"]) == (6, other["bytes_up"])
