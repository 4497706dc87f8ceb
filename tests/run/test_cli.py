"""The commands, as a user meets them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedopt import config as configs
from fedopt.config import load

Small = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Same = Callable[[Path, Path], None]
Command = Callable[..., Any]


def folders(root: Path) -> set[str]:
    return {str(path.parent.relative_to(root)) for path in root.rglob("metrics.jsonl")}


def test_run_puts_everything_into_the_folder(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()  # an empty folder is as good as none
    ran = fedopt("run", write(small()), "--set", f"run.out={tmp_path / 'here'}", "--set", "run.rounds=2")
    assert ran.status == 0, ran.err
    wanted = {"config.toml", "partition.json", "run.json", "metrics.jsonl", "checkpoints", "model.safetensors"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == wanted | {"report.html", ".lock"}
    assert "finished: all rounds done" in ran.out and f"report: {tmp_path / 'here' / 'report.html'}" in ran.out
    stored = load(tmp_path / "here" / "config.toml")
    assert stored == load(small({"run.rounds": 2, "run.out": str(tmp_path / "here")}))
    again = fedopt("run", write(small()), "--set", f"run.out={tmp_path / 'here'}")
    assert again.status == 2 and "holds a run already" in again.err and "Traceback" not in again.err


def test_the_folder_by_default(
    fedopt: Command, small: Small, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedopt("run", write(small({"run.rounds": 1, "run.name": "mine"})), "-q").status == 0
    assert folders(tmp_path) == {"runs/mine"}


def test_resume_extends(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    config = write(small({"run.rounds": 2, "run.out": str(tmp_path / "run")}))
    fedopt("run", config, "-q")
    ran = fedopt("resume", tmp_path / "run", "--set", "run.rounds=4", "-q")
    assert ran.status == 0 and "finished" in ran.out
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    refused = fedopt("resume", tmp_path / "run", "--set", "optimizer.lr=0.7")
    assert refused.status == 2 and "optimizer.lr: the run was started with 0.1" in refused.err and "0.7" in refused.err
    nothing = fedopt("resume", tmp_path)
    assert nothing.status == 2 and "is no run folder" in nothing.err


def test_an_error_is_one_line_with_the_key(fedopt: Command, small: Small, write: Write) -> None:
    for command in ("run", "check", "show"):
        ran = fedopt(command, write(small({"optimizer.learning_rate": 1.0})))
        assert ran.status == 2 and ran.out == ""
        assert ran.err.startswith("error optimizer.learning_rate: unknown option.") and ran.err.count("\n") == 1
    assert "there is no file" in fedopt("run", "absent.toml").err


def test_what_is_in_brackets_is_shown(fedopt: Command, small: Small, write: Write) -> None:
    ran = fedopt("run", write(small({"run.dtype": "[bold]x[/bold]"})))
    assert "'[bold]x[/bold]' was given" in ran.err


def test_check(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    ran = fedopt("check", write(small({"attack": [{"name": "alie", "clients": [2, 5]}]})))
    assert ran.status == 0
    for words in ("ok ", "clients: 8", "parameters: 610", "attackers: [2, 5]", "classes: 10"):
        assert words in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"], "nothing is run"


def test_show_prints_a_config_that_is_the_same(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    changes = {
        "optimizer.lr": {"schedule": "cosine", "start": 0.1, "rounds": 10},
        "attack": [{"name": "alie", "share": 0.25}],
        "run.name": "a name of many words " * 10,
    }
    path = write(small(changes))
    ran = fedopt("show", path, "--set", "run.seed=5")
    assert ran.status == 0
    (tmp_path / "shown.toml").write_text(ran.out)
    assert load(tmp_path / "shown.toml") == load(path, ["run.seed=5"])
    assert "rounds" in tomllib.loads(ran.out)["run"], "with its defaults"


def test_list_shows_every_component(fedopt: Command) -> None:
    whole = fedopt("list").out
    for section, registry in configs.SECTIONS.items():
        if section in ("strategy.server", "compression.down"):
            continue
        alone = fedopt("list", section).out
        assert f"[{section}]" in alone and f"[{section}]" in whole
        for name in registry.names():
            for out in (alone, whole):
                assert re.search(rf"(?<!\w){name}(?!\w)", out), f"{name} of {section}"
    assert "[attack]" not in fedopt("list", "aggregator").out
    assert "f:" in fedopt("list", "aggregator").out and "Blanchard" in fedopt("list", "aggregator").out
    wrong = fedopt("list", "aggregators")
    assert wrong.status == 2 and "no such section" in wrong.err and "aggregator" in wrong.err


def test_a_sweep_makes_a_folder_for_every_combination(
    fedopt: Command, small: Small, write: Write, tmp_path: Path
) -> None:
    root = tmp_path / "sweep"
    config = write(small({"run.rounds": 1, "run.out": str(root)}))
    words = ("--sweep", "optimizer.lr=0.1,0.01", "--sweep", "strategy.name=fedavg,scaffold", "--seeds", 2, "-q")
    ran = fedopt("run", config, *words)
    assert ran.status == 0, ran.err
    cells = {
        f"optimizer.lr={lr},strategy.name={name}/seed-{seed}"
        for lr in ("0.1", "0.01")
        for name in ("fedavg", "scaffold")
        for seed in (1, 2)
    }
    assert folders(root) == cells
    for cell in cells:
        stored = load(root / cell / "config.toml")
        assert stored.optimizer is not None
        assert str(stored.optimizer.options["lr"]) in cell and stored.strategy.name in cell
        assert cell.endswith(f"seed-{stored.run.seed}")
    assert (root / "compare.html").exists() and str(root / "compare.html") in ran.out
    assert "scaffold" in ran.out


def test_a_sweep_goes_on_where_it_stopped(
    fedopt: Command, small: Small, write: Write, same: Same, tmp_path: Path
) -> None:
    whole, root = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, root):
        assert fedopt("run", write(small({"run.out": str(folder)})), "--seeds", 3, "-q").status == 0
    # the first is finished, the second was stopped after three exchanges, the third never begun
    second, third = root / "seed-2", root / "seed-3"
    for path in (second / "checkpoints").iterdir():
        if path.name > "00000006":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    about = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**about, "status": "running"}))
    third.rename(tmp_path / "away")
    first = {path: path.stat().st_mtime_ns for path in (root / "seed-1").rglob("*")}
    ran = fedopt("run", write(small({"run.out": str(root)})), "--seeds", 3, "-q")
    assert ran.status == 0 and f"{root / 'seed-1'} is finished already" in ran.out
    assert ran.out.count("is finished already") == 1
    assert first == {path: path.stat().st_mtime_ns for path in (root / "seed-1").rglob("*")}
    for seed in (1, 2, 3):
        models = [load_file(folder / f"seed-{seed}" / "model.safetensors") for folder in (whole, root)]
        torch.testing.assert_close(*models, rtol=0, atol=0)


def test_a_finished_cell_of_another_experiment_is_not_passed_off_as_this_one(
    fedopt: Command, small: Small, write: Write, tmp_path: Path
) -> None:
    config = write(small({"run.rounds": 2, "run.out": str(tmp_path / "sweep")}))
    fedopt("run", config, "--seeds", 2, "-q")
    other = fedopt("run", config, "--seeds", 2, "-q", "--set", "optimizer.lr=0.9")
    assert other.status == 2 and "optimizer.lr: the run was started with 0.1" in other.err
    longer = fedopt("run", config, "--seeds", 2, "-q", "--set", "run.rounds=3")
    assert longer.status == 0 and "finished already" not in longer.out
    for seed in (1, 2):
        assert len((tmp_path / "sweep" / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()) == 3


def test_values_of_a_sweep_may_be_lists_and_tables(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    config = write(small({"run.rounds": 1, "run.out": str(tmp_path / "sweep")}))
    partitions = 'data.partition={name="iid"},{name="dirichlet", alpha=0.5}'
    ran = fedopt("run", config, "--sweep", "model.hidden=[4],[4,3]", "--sweep", partitions, "-q")
    assert ran.status == 0, ran.err
    hidden = {tuple(load(path).model.options["hidden"]) for path in tmp_path.rglob("sweep/*/config.toml")}
    assert hidden == {(4,), (4, 3)} and len(folders(tmp_path)) == 4


def test_a_mistake_anywhere_in_a_sweep_is_found_before_it_begins(
    fedopt: Command, small: Small, write: Write, tmp_path: Path
) -> None:
    config = write(small({"run.out": str(tmp_path / "sweep")}))
    ran = fedopt("run", config, "--sweep", "strategy.name=fedavg,fedavgg", "-q")
    assert ran.status == 2 and "Did you mean 'fedavg'?" in ran.err
    ran = fedopt("run", config, "--sweep", "optimizer.lr", "-q")
    assert ran.status == 2 and "section.key=value,value" in ran.err
    assert folders(tmp_path) == set()


class Same8(nn.Module):
    """What `mlp` with 8 hidden units is, for someone who has torch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


def test_export(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    fedopt("run", write(small({"run.out": str(tmp_path / "run")})), "-q")
    ran = fedopt("export", tmp_path / "run", "--out", tmp_path / "given.safetensors")
    assert ran.status == 0 and ran.out == f"{tmp_path / 'given.safetensors'}\n"
    state = load_file(tmp_path / "given.safetensors")
    module = Same8()
    module.net.load_state_dict(state)
    import fedopt as library

    result = library.resume_run(tmp_path / "run")
    x = result.setup.problem.data.server["test"].x
    assert module(x).equal(result.module()(x))
    assert (module(x).argmax(1) == result.setup.problem.data.server["test"].y).float().mean() == pytest.approx(
        result.final["accuracy"]
    )
    (tmp_path / "run" / "model.safetensors").unlink()
    fedopt("export", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tmp_path / "given.safetensors").read_bytes()


def test_what_cannot_be_exported(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    config = write(small({"strategy.name": "local_only", "run.rounds": 1, "run.out": str(tmp_path / "run")}))
    fedopt("run", config, "-q")
    ran = fedopt("export", tmp_path / "run")
    assert ran.status == 2 and "'local_only' has no common model to export" in ran.err
    assert "is no run folder" in fedopt("export", tmp_path).err


@pytest.mark.parametrize("executor", ["serial", "stacked"])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_replay_repeats_a_clients_work(
    executor: str, strategy: str, fedopt: Command, small: Small, write: Write, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from fedopt.engine import serial, stacked

    sent: dict[tuple[int, int], float] = {}
    seen: list[Any] = []

    def noting(real: Any) -> Any:
        def gathered(exchange: Any, blocks: Any) -> Any:
            blocks = list(blocks)
            if exchange.program == "train":
                if not seen or seen[-1] is not exchange:  # one exchange is gathered in several lanes
                    seen.append(exchange)
                number = len(seen) - 1
                for _, where, uplinks in blocks:
                    for row, client in enumerate(exchange.clients[where].tolist()):
                        sent[number, client] = float(uplinks.vectors["delta"][row].norm())
            return real(exchange, blocks)

        return gathered

    with monkeypatch.context() as patch:
        for module in (serial, stacked):
            patch.setattr(module, "gather", noting(module.gather))
        config = write(small({"executor": executor, "strategy.name": strategy, "run.out": str(tmp_path / "run")}))
        assert fedopt("run", config, "-q").status == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for exchange in (0, 4, 8):  # before the kept checkpoints, and after one
        client = lines[exchange]["clients"][-1]
        ran = fedopt("replay", tmp_path / "run", "--exchange", exchange, "--client", client)
        assert ran.status == 0, ran.err
        norm = re.search(r"delta: 610 entries, norm (\S+)", ran.out)
        assert norm is not None and float(norm[1]) == pytest.approx(sent[exchange, client], rel=2e-5)
        assert f"client {client} (client {client}), program 'train'" in ran.out
        loss = re.search(r"loss: (\S+)", ran.out)
        assert loss is not None and float(loss[1]) == pytest.approx(lines[exchange]["client_loss"][-1], rel=1e-4)
    absent = next(client for client in range(8) if client not in lines[4]["clients"])
    ran = fedopt("replay", tmp_path / "run", "--exchange", 4, "--client", absent)
    assert ran.status == 2
    assert f"client {absent} took no part in exchange 4: {lines[4]['clients']} did" in ran.err
    ran = fedopt("replay", tmp_path / "run", "--exchange", 10, "--client", 0)
    assert ran.status == 2 and "0 to 9 can be replayed" in ran.err


def test_report_and_compare(fedopt: Command, small: Small, write: Write, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fedopt("run", write(small({"run.rounds": 1, "run.name": name, "run.out": str(tmp_path / name)})), "-q")
    (tmp_path / "one" / "report.html").unlink()
    ran = fedopt("report", tmp_path / "one")
    assert ran.status == 0 and ran.out == f"{tmp_path / 'one' / 'report.html'}\n"
    assert (tmp_path / "one" / "report.html").exists()
    ran = fedopt("compare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both.html")
    assert ran.status == 0 and "one" in ran.out and "two" in ran.out and (tmp_path / "both.html").exists()
    assert fedopt("report", tmp_path).status == 2
