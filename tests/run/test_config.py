"""How a config is put together: file, base, changes, defaults, and back to a file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedopt import config as configs
from fedopt import setup as setups
from fedopt.config import Config, differences, load
from fedopt.registry import ConfigError
from fedopt.sweep import grid

Small = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
FILES = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.toml"))
SWEEPS = [path for path in FILES if "sweep" in tomllib.loads(path.read_text())]
SHIPPED = [path for path in FILES if path not in SWEEPS]


def test_a_file_a_dict_and_a_config_are_the_same(small: Small, write: Write) -> None:
    one = load(write(small()))
    assert load(str(write(small()))) == load(small()) == load(one) == one
    assert one.optimizer is not None and one.optimizer.options == {"lr": 0.1}


def test_the_source_is_not_changed(small: Small) -> None:
    document = small()
    load(document, ["optimizer.lr=3", "data.partition.name=iid"])
    assert document == small()
    config = load(document)
    load(config, ["optimizer.lr=3"])
    assert config == load(document)


def test_a_word_stands_for_a_table_with_that_name(small: Small) -> None:
    words = {"participation": "uniform", "aggregator": "mean", "compression": "none", "executor": "serial"}
    tables = {section: {"name": name} for section, name in words.items()}
    assert load(small({**words, "data.partition": "iid"})) == load(small({**tables, "data.partition": {"name": "iid"}}))
    assert load(small({"attack": {"name": "alie", "count": 1}})) == load(
        small({"attack": [{"name": "alie", "count": 1}]})
    )


def test_base(write: Write, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write({"run": {"rounds": 7, "name": "low"}, "optimizer": {"name": "adam", "lr": 0.1, "beta1": 0.8}}, "low.toml")
    upper = {"base": "../low.toml", "run": {"name": "high"}, "optimizer": {"lr": 0.2}, "data": {"clients": 3}}
    config = load(write(upper, "deep/high.toml"))
    assert (config.run.name, config.run.rounds, config.data.clients) == ("high", 7, 3)
    assert config.optimizer is not None
    assert (config.optimizer.name, config.optimizer.options) == ("adam", {"lr": 0.2, "beta1": 0.8})
    # another component has other options
    other = load(write({"base": "low.toml", "optimizer": {"name": "sgd", "lr": 0.5}}, "other.toml"))
    assert other.optimizer is not None and other.optimizer.options == {"lr": 0.5}
    word = load(write({"base": "low.toml", "optimizer": "sgd"}, "word.toml"), ["optimizer.lr=1.0"])
    assert word.optimizer is not None and word.optimizer.options == {"lr": 1.0}


def test_what_is_wrong_with_a_base(write: Write) -> None:
    write({"base": "c.toml"}, "b.toml")
    write({}, "c.toml")
    with pytest.raises(ConfigError, match=r"base: b\.toml has a base of its own; one level is allowed"):
        load(write({"base": "b.toml"}, "a.toml"))
    with pytest.raises(ConfigError, match=r"there is no file .*d\.toml"):
        load(write({"base": "d.toml"}, "a.toml"))
    with pytest.raises(ConfigError, match="base: the path of another config"):
        load(write({"base": 3}, "a.toml"))


@pytest.mark.parametrize(
    "changes, path, value",
    [
        (["run.rounds=4"], "run.rounds", 4),
        (["run.name=a word or two"], "run.name", "a word or two"),
        (['run.name="3"'], "run.name", "3"),
        (["model.hidden=[4, 5]"], "model.hidden", [4, 5]),
        (["model.hidden.0=5"], "model.hidden", [5]),
        (["run.stop.patience=3"], "run.stop.patience", 3),
        (["run.stop={target=0.5}"], "run.stop.target", 0.5),
        (["data.partition.alpha=0.25"], "data.partition.alpha", 0.25),
        (["strategy.server.name=adam", "strategy.server.lr=0.5"], "strategy.server.lr", 0.5),
        (
            ["optimizer.lr.schedule=cosine", "optimizer.lr.start=1.0", "optimizer.lr.rounds=9"],
            "optimizer.lr.start",
            1.0,
        ),
        (["optimizer.lr={schedule='cosine', start=1.0, rounds=9}"], "optimizer.lr.rounds", 9),
        (["attack.0.name=alie", "attack.0.count=2"], "attack.0.count", 2),
        (["aggregator=krum", "aggregator.f=1"], "aggregator.f", 1),
        (["executor=serial", "executor.threads=2"], "executor.threads", 2),
        (["executor.threads=2", "executor.name=serial"], "executor.threads", 2),
        (["run.rounds=4", "run.rounds=5"], "run.rounds", 5),
        (["run.seed = 7"], "run.seed", 7),
    ],
)
def test_set(changes: list[str], path: str, value: Any, small: Small) -> None:
    document: Any = load(small(), changes).document()
    for part in path.split("."):
        document = document[int(part) if isinstance(document, list) else part]
    assert document == value


def test_set_in_a_list_of_attacks(small: Small) -> None:
    document = small({"attack": [{"name": "sign_flip", "scale": 3.0, "share": 0.25}, {"name": "alie", "count": 1}]})
    config = load(document, ["attack.1.count=2", "attack.2.name=label_flip", "attack.2.clients=[7]"])
    assert [attack.name for attack in config.attack] == ["sign_flip", "alie", "label_flip"]
    assert (config.attack[1].count, config.attack[2].clients) == (2, [7])
    # another attack by the same attackers, without the options of the old one
    config = load(document, ["attack.0.name=alie"])
    assert (config.attack[0].share, config.attack[0].options) == (0.25, {})


def test_another_component_drops_the_options_of_the_old_one(small: Small) -> None:
    document = small(
        {
            "optimizer.momentum": 0.9,
            "strategy": {
                "name": "fedprox",
                "mu": 1.0,
                "batch_size": 5,
                "server": {"name": "adam", "lr": 1.0, "eps": 1.0},
            },
            "model.trainable": ["*"],
        }
    )
    changes = [
        "optimizer.name=adam",
        "optimizer.lr=0.5",
        "data.partition.name=shards",
        "strategy.name=fedavg",
        "strategy.server.name=sgd",
        "strategy.server.lr=2.0",
        "model.name=logistic",
    ]
    config = load(document, changes)
    assert config.optimizer is not None and config.optimizer.options == {"lr": 0.5}
    assert (config.data.partition.name, config.data.partition.options) == ("shards", {})
    assert (config.strategy.name, config.strategy.options, config.strategy.batch_size) == ("fedavg", {}, 5)
    assert config.strategy.server is not None and config.strategy.server.options == {"lr": 2.0}
    assert (config.model.name, config.model.options, config.model.trainable) == ("logistic", {}, ["*"])
    assert config.data.clients == 8
    # the same name again changes nothing
    assert load(document, ["strategy.name=fedprox"]) == load(document)


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "cosine", "start": 0.1, "end": 0.001, "rounds": 100},
        {"schedule": "steps", "values": [0.1, 0.01], "at": [50]},
        {"schedule": "wsd", "peak": 0.1, "warmup": 3, "stable": 5, "decay": 2},
    ],
)
def test_a_schedule_goes_through_a_file_and_to_the_optimizer(
    schedule: dict[str, Any], small: Small, write: Write
) -> None:
    from fedopt.schedules import at, parse

    config = load(write(small({"optimizer.lr": schedule, "strategy": {"name": "fedprox", "mu": schedule}})))
    strategy: Any = setups.build(config).strategy
    for round in (0, 3, 7, 60, 200):
        assert at(strategy.optimizer.lr, round) == at(strategy.mu, round) == at(parse(schedule), round)


def test_a_config_as_a_file_is_the_same_config(small: Small, tmp_path: Path) -> None:
    changes = {
        "run.stop": {"target": 0.9},
        "attack": [{"name": "alie", "share": 0.25}, {"name": "label_flip", "clients": [1]}],
        "optimizer.lr": {"schedule": "cosine", "start": 0.1, "rounds": 10},
        "strategy.server": {"name": "adam", "lr": 0.1},
        "run.name": 'a "name" [in] brackets, é',
    }
    config = load(small(changes))
    path = tmp_path / "again.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load(path) == config
    assert load(config.document()) == config
    assert differences(load(path), config) == {}


def test_differences_name_both_values(small: Small) -> None:
    one, other = load(small()), load(small({"optimizer.lr": 0.2, "run.stop": {"target": 0.5}, "model.hidden": [8, 8]}))
    assert differences(one, other) == {
        "model.hidden": ([8], [8, 8]),
        "optimizer.lr": (0.1, 0.2),
        "run.stop.metric": (None, "accuracy"),
        "run.stop.min_delta": (None, 0.0),
        "run.stop.target": (None, 0.5),
    }


def test_the_rooms_that_a_config_reaches_are_all_there() -> None:
    assert {"data", "model", "strategy", "participation", "aggregator", "attack", "compression", "optimizer"} <= {
        *configs.SECTIONS
    }
    for registry in configs.SECTIONS.values():
        for name in registry.names():
            assert registry.get(name).__name__ == name


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_sound(path: Path) -> None:
    assert path.read_text().startswith("#"), "a sweep says in its first line what it is"
    found = grid.read(path)
    assert found.name == path.stem and len(found.runs) > 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_config_is_short_and_sound(path: Path, fedopt_data: Callable[[str], Path]) -> None:
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(content) < 30, f"{len(content)} lines"
    assert path.read_text().startswith("#"), "a config says in its first line what it is"
    config = load(path)
    assert isinstance(config, Config)
    document = tomllib.loads(path.read_text())
    assert document.get("run", {}).get("name") in (None, path.stem.replace("_", "-"))
    for key in ("file", "folder", "images", "labels"):
        if key in config.data.options:
            fedopt_data(config.data.options[key])
    setups.build(config)


def test_set_removes_a_section_or_a_key(small: Small) -> None:
    config = load(small(), ["strategy=centralised", "participation=", "model.hidden="])
    assert config.participation is None and config.model.options == {}
    setups.build(config)
    with pytest.raises(ConfigError, match=r"aggregator: there is nothing of that name to remove"):
        load(small(), ["aggregator="])


def test_another_strategy_keeps_how_clients_walk_over_their_data(small: Small, write: Write) -> None:
    wanted = {"name": "fedprox", "batch_size": 16, "steps": 2, "mu": 0.5}
    base = small({"strategy": {"name": "fedavg", "batch_size": 16, "steps": 2, "weighting": "uniform"}})
    for changes in (["strategy=fedprox"], ["strategy.name=fedprox"]):
        section = load(base, [*changes, "strategy.mu=0.5"]).document()["strategy"]
        assert section == wanted
    write(base, "base.toml")
    document = {"base": "base.toml", "strategy": {"name": "fedprox", "mu": 0.5}}
    assert load(write(document, "upper.toml")).document()["strategy"] == wanted
    # a nested component has no keys of its own to keep
    document = {"base": "base.toml", "data": {"partition": "iid"}}
    assert load(write(document, "upper.toml")).document()["data"]["partition"] == {"name": "iid"}
