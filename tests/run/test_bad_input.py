"""What is wrong in a config is said before anything runs: where it is, and what would mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedopt
from fedopt import config as configs
from fedopt import setup as setups
from fedopt.registry import ConfigError

Small = Callable[..., dict[str, Any]]


def refused(document: Any, changes: tuple[str, ...] = ()) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        setups.build(configs.load(document, changes))
    assert str(error.value).startswith(f"{error.value.where}: ")
    return error.value


WRONG: list[tuple[dict[str, Any], str, list[str]]] = [
    # sections and keys
    ({"optimiser": {"name": "sgd"}}, "optimiser", ["unknown key", "Did you mean 'optimizer'?", "Known: run, data"]),
    ({"run.round": 3}, "run.round", ["unknown key", "Did you mean 'rounds'?", "Known: name, seed"]),
    ({"run.stop": {"pacience": 3}}, "run.stop.pacience", ["unknown key", "Did you mean 'patience'?"]),
    ({"executor": {"name": "serial", "thread": 2}}, "executor.thread", ["Did you mean 'threads'?"]),
    ({"data": 5}, "data", ["5 was given"]),
    # names
    (
        {"strategy.name": "fedaverage"},
        "strategy.name",
        ["no strategies component 'fedaverage'", "Did you mean 'fedavg'?"],
    ),
    ({"data.name": "digit"}, "data.name", ["Did you mean 'digits'?", "import path"]),
    ({"data.partition": "dirichlett"}, "data.partition.name", ["Did you mean 'dirichlet'?"]),
    ({"model.name": "MLP"}, "model.name", ["no models component 'MLP'", "Known: "]),
    ({"aggregator": "medean"}, "aggregator.name", ["no aggregators component 'medean'", "Did you mean 'm"]),
    ({"attack": [{"name": "sign-flip", "count": 1}]}, "attack.0.name", ["Did you mean 'sign_flip'?"]),
    ({"optimizer.name": "sdg"}, "optimizer.name", ["Did you mean 'sgd'?"]),
    ({"strategy.server": "adm"}, "strategy.server.name", ["no optimizers component 'adm'", "Did you mean 'adam'?"]),
    ({"participation.name": "unifrom"}, "participation.name", ["Did you mean 'uniform'?"]),
    ({"compression": "nine"}, "compression.name", ["Did you mean 'none'?"]),
    ({"executor": "stack"}, "executor.name", ["'stacked'", "'stack' was given"]),
    (
        {"model.loss": "crossentropy"},
        "model.loss",
        ["no loss 'crossentropy'", "Did you mean 'cross_entropy'?", "squares"],
    ),
    ({"aggregator": "no.such.module:rule"}, "aggregator.name", ["cannot import 'no.such.module'"]),
    ({"aggregator": "fedopt.aggregators.krum:crum"}, "aggregator.name", ["has no 'crum'", "Did you mean 'krum'?"]),
    # options
    ({"optimizer.learning_rate": 0.1}, "optimizer.learning_rate", ["unknown option", "Options: lr"]),
    ({"optimizer.momentun": 0.9}, "optimizer.momentun", ["unknown option", "Did you mean 'momentum'?"]),
    ({"aggregator": {"name": "krum", "F": 1}}, "aggregator.F", ["unknown option", "f: "]),
    ({"data.partition.beta": 0.1}, "data.partition.beta", ["unknown option", "alpha: "]),
    ({"model.hiden": [4]}, "model.hiden", ["Did you mean 'hidden'?"]),
    ({"strategy.mu": 0.1}, "strategy.mu", ["unknown option"]),
    ({"attack": [{"name": "alie", "count": 1, "zz": 1}]}, "attack.0.zz", ["unknown option"]),
    # types and ranges
    ({"run.rounds": "many"}, "run.rounds", ["valid integer", "'many' was given"]),
    ({"run.rounds": 0}, "run.rounds", ["greater than or equal to 1", "0 was given"]),
    ({"run.rounds": 2.5}, "run.rounds", ["2.5 was given"]),
    ({"run.seed": True}, "run.seed", ["True was given"]),
    ({"run.seed": -1}, "run.seed", ["-1 was given"]),
    ({"run.dtype": "float16"}, "run.dtype", ["'float32' or 'float64'", "'float16' was given"]),
    ({"run.track": ["wandb"]}, "run.track.0", ["'tensorboard' or 'mlflow'", "'wandb' was given"]),
    ({"optimizer.lr": "0.1"}, "optimizer.lr", ["'0.1' was given"]),
    (
        {"optimizer.lr": {"schedule": "cosin", "start": 1}},
        "optimizer.lr",
        ["no schedule 'cosin'", "Did you mean 'cosine'?"],
    ),
    ({"optimizer.lr": {"schedule": "cosine", "start": 1}}, "optimizer.lr", ["rounds", "missing"]),
    ({"optimizer.lr": {"schedule": "cosine", "start": 1, "round": 3}}, "optimizer.lr", ["Did you mean 'rounds'?"]),
    ({"participation.count": 2.5}, "participation.count", ["2.5 was given"]),
    ({"participation.fraction": 1.5, "participation.count": None}, "participation.fraction", ["1.5 was given"]),
    ({"participation.fraction": 0.5}, "participation", ["count or fraction, not both"]),
    ({"model.hidden": [4, -1]}, "model.hidden", ["[4, -1] was given"]),
    ({"data.test_share": 1.0}, "data.test_share", ["less than 1"]),
    ({"strategy.weighting": "sample"}, "strategy.weighting", ["'samples' or 'uniform'", "'sample' was given"]),
    # what is missing
    ({"optimizer": None}, "optimizer", ["'fedavg' trains at the clients", "add [optimizer]"]),
    ({"optimizer.lr": None}, "optimizer.lr", ["missing", "lr: "]),
    ({"optimizer.name": None}, "optimizer.name", ["missing"]),
    ({"aggregator": {"name": "krum"}}, "aggregator.f", ["missing", "f: "]),
    ({"data.clients": None}, "data.clients", ["missing", "the number of clients"]),
    ({"data.valid_share": None}, "data.valid_share", ["share > 0", "run.evaluate_clients_every = 0"]),
    # what has no use
    ({"strategy": {"name": "fedsgd"}}, "optimizer", ["'fedsgd' has no use for it", "remove the section [optimizer]"]),
    ({"strategy": {"name": "local_only"}, "aggregator": "mean"}, "aggregator", ["no use", "remove the section"]),
    (
        {"strategy.name": "local_only", "strategy.server": {"name": "sgd", "lr": 1.0}},
        "strategy.server",
        ["no server step", "remove the key"],
    ),
    # numbers that do not go together
    (
        {"aggregator": {"name": "krum", "f": 1}},
        "aggregator",
        ["n >= 2f + 3 = 5", "4 were given", "lower aggregator.f", "raise participation.count"],
    ),
    ({"aggregator": {"name": "trimmed_mean", "f": 2}}, "aggregator", ["4 were given", "lower aggregator.f"]),
    ({"participation.count": 9}, "participation.count", ["9 clients are asked for and the pool has 8", "1 ... 8"]),
    ({"run.stop": {}}, "run.stop", ["a target or a patience is needed"]),
    ({"run.stop": {"patience": 3}, "data.test_share": 0.0}, "run.stop.metric", ["'accuracy' is not measured"]),
    (
        {"run.stop": {"patience": 3}, "strategy": {"name": "local_only"}},
        "run.stop.metric",
        ["'accuracy' is not measured"],
    ),
    ({"data.trial_samples": 5000}, "data.trial_samples", ["5000 was given", "lower it"]),
    # attackers
    ({"attack": [{"name": "alie"}]}, "attack.0", ["one of share, count, clients or along is needed; none given"]),
    ({"attack": [{"name": "alie", "share": 0.2, "count": 2}]}, "attack.0", ["share, count given"]),
    ({"attack": [{"name": "alie", "share": 0.1}]}, "attack.0.share", ["0 attackers of the 8 clients"]),
    ({"attack": [{"name": "alie", "share": 1.2}]}, "attack.0.share", ["1.2 was given"]),
    ({"attack": [{"name": "alie", "count": 9}]}, "attack.0.count", ["9 attackers of the 8 clients left"]),
    ({"attack": [{"name": "alie", "clients": [1, 8]}]}, "attack.0.clients", ["from 0 to 7", "[1, 8] given"]),
    ({"attack": [{"name": "alie", "clients": [1, 1]}]}, "attack.0.clients", ["different ids", "[1, 1] given"]),
    (
        {"attack": [{"name": "alie", "clients": [1]}, {"name": "sign_flip", "clients": [2, 1]}]},
        "attack.1.clients",
        ["client 1 is in another attack already"],
    ),
    (
        {"attack": [{"name": "alie", "count": 6}, {"name": "sign_flip", "count": 3}]},
        "attack.1.count",
        ["3 attackers of the 2 clients left"],
    ),
    ({"attack": [{"name": "alie", "clients": "all"}]}, "attack.0.clients", ["'all' was given"]),
    # data that is spread too thin
    (
        {"data.partition": {"name": "dirichlet", "alpha": 0.01, "min_samples": 180}},
        "data.partition.min_samples",
        ["at least 180 per client", "client ", "lower data.partition.min_samples"],
    ),
    (
        {"data.clients": 900, "data.partition": {"name": "dirichlet", "alpha": 0.05}},
        "data.clients",
        ["at least 1 per client was needed", "has 0", "lower data.clients, raise data.partition.alpha"],
    ),
    ({"data.clients": 2000, "data.partition": "iid"}, "data.clients", ["client "]),
    # models
    (
        {"model.trainable": ["head.*"]},
        "model.trainable",
        ["no parameter matches 'head.*'", "Parameters: 1.weight, 1.bias"],
    ),
    ({"model.loss": "logistic"}, "model", ["loss 'logistic' does not fit the data", "(1, 8, 8)"]),
    ({"model": {"name": "char_lstm"}}, "model.name", ["token ids"]),
    ({"model": {"name": "cnn1d"}}, "model", ["[1, 8, 8]"]),
]


@pytest.mark.parametrize("changes, where, words", WRONG, ids=[f"{where}-{i}" for i, (_, where, _) in enumerate(WRONG)])
def test_the_error_names_the_key_and_the_mend(
    changes: dict[str, Any], where: str, words: list[str], small: Small
) -> None:
    error = refused(small(changes))
    assert error.where == where
    for word in words:
        assert word in str(error), f"{word!r} is not in {str(error)!r}"


def test_the_small_experiment_itself_is_fine(small: Small) -> None:
    setups.build(configs.load(small()))


@pytest.mark.parametrize(
    "change, where, words",
    [
        ("optimizer.lr", "optimizer.lr", ["section.key=value"]),
        ("=3", "=3", ["section.key=value"]),
        ("attack.0.count=1", "attack.0.name", ["missing"]),
        ("attack.2.count=1", "attack.2.count", ["a number below 0", "'2' was given"]),
        ("model.hidden.3=1", "model.hidden.3", ["a number below 1", "'3' was given"]),
        ("model.hidden.0.x=1", "model.hidden.0.x", ["model.hidden.0 is 8", "nothing below it"]),
        ("optimizer=2024-01-01", "config", ["only numbers, words, lists and tables"]),
        ("seed=3", "seed", ["unknown key"]),
    ],
)
def test_a_wrong_change(change: str, where: str, words: list[str], small: Small) -> None:
    error = refused(small(), (change,))
    assert error.where == where
    assert all(word in str(error) for word in words), str(error)


def test_files_that_are_no_config(small: Small, tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text("[run\n")
    error = refused(tmp_path / "quikstart.toml")
    assert "there is no file" in str(error) and "Did you mean" in str(error) and "quickstart.toml" in str(error)
    assert "is no TOML" in str(refused(tmp_path / "quickstart.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in str(refused(tmp_path / "binary.toml"))
    assert "cannot be read" in str(refused(tmp_path))
    assert "only numbers, words" in str(refused({**small(), "run": {"out": Path("x")}}))


IDX = {"images": "images.idx", "labels": "labels.idx"}


def idx(shape: tuple[int, ...], kind: int = 8) -> bytes:
    head = bytes((0, 0, kind, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    return head + bytes(i % 3 for i in range(torch.Size(shape).numel()))


def test_data_files(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPT_DATA", str(tmp_path))
    document = small({"data": {"name": "idx", "clients": 3, "valid_share": 0.2, **IDX}, "participation.count": 3})
    images, labels = tmp_path / "images.idx", tmp_path / "labels.idx"

    def says(where: str, *words: str) -> None:
        error = refused(document)
        assert error.where == where
        assert all(word in str(error) for word in (*words, str(tmp_path))), str(error)

    says("data.images", "there is no", "images.idx", "FEDOPT_DATA")
    images.write_bytes(idx((60, 4, 4)))
    says("data.labels", "there is no", "labels.idx")
    labels.write_bytes(idx((60,))[:-7])
    says("data.labels", "expected an IDX file of labels", "60 bytes after its header", "found 53 bytes")
    labels.write_bytes(b"P5 4 4 255 not this")
    says("data.labels", "expected an IDX file of labels", "first bytes are 00000801")
    labels.write_bytes(b"")
    says("data.labels", "no bytes")
    labels.write_bytes(idx((59,)))
    says("data.labels", "60 labels, one for each image", "found 59")
    labels.write_bytes(idx((60,)))
    setups.build(configs.load(document))
    monkeypatch.delenv("FEDOPT_DATA")
    error = refused(document)
    assert error.where == "data.images" and "FEDOPT_DATA is not set" in str(error)


def test_a_table_in_another_format(small: Small, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text("1 1:0.5 2:1\n-1 1:0.2\nlabel;a;b\n")
    error = refused(small({"data": {"name": "libsvm", "clients": 2, "file": str(table)}}))
    assert error.where == "data.file" and "line 3: 'label;a;b'" in str(error)


class Blunt(nn.Module):
    """Ten outputs for inputs of another width than the digits have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.flatten(1))
        return out


def test_an_own_module_that_does_not_fit(small: Small) -> None:
    with pytest.raises(ConfigError) as error:
        fedopt.Experiment(model=Blunt(), data={"clients": 4}, optimizer={"name": "sgd", "lr": 0.1}).setup()
    assert error.value.where == "model"
    for word in ("does not fit the data", "(1, 8, 8)", "10 classes", "mat1 and mat2 shapes"):
        assert word in str(error.value)


def test_the_folder_of_another_run(small: Small, tmp_path: Path) -> None:
    fedopt.run(small({"run.rounds": 1}), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run\.out: the folder .* holds a run already; continue it with 'fedopt res"):
        fedopt.run(small(), out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"run\.out: the folder .*other is not empty; give another with --set"):
        fedopt.run(small(), out=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match=r"run\.out: the folder .*thesis\.tex cannot be made"):
        fedopt.run(small(), out=tmp_path / "other" / "thesis.tex")
