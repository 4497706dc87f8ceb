"""Private runs from end to end: the record, what is guaranteed, resuming, budgets, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedopt as library
from fedopt import config as configs
from fedopt import privacy
from fedopt import setup as setups
from fedopt.participation.uniform import uniform
from fedopt.registry import ConfigError, declare
from fedopt.report import html
from fedopt.strategies.fedavg import fedavg

Small = Callable[..., dict[str, Any]]
Same = Callable[[Path, Path], None]
Record = Callable[[Path], list[dict[str, Any]]]

FIXED = {"privacy": {"clip": 0.5, "noise_multiplier": 1.5}}
ADAPTIVE = {"privacy": {"clip": 0.1, "noise_multiplier": 0.5, "adaptive": {"quantile": 0.6, "lr": 0.5}}}
DELTA = 8**-1.1


@pytest.fixture(autouse=True)
def accountant() -> None:
    pytest.importorskip("dp_accounting")


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())["privacy"]
    return found


def guarantee(document: dict[str, Any]) -> dict[str, Any]:
    found = setups.build(configs.load(document)).privacy
    assert found is not None
    return found


def test_a_private_run_says_what_it_spends(small: Small, record: Record, tmp_path: Path) -> None:
    result = library.run(small(FIXED), out=tmp_path)
    assert result.status == "finished"
    assert all(torch.isfinite(value).all() for value in result.model.values())
    infos = [line["info"] for line in record(tmp_path)]
    for number, info in enumerate(infos, 1):
        assert info["epsilon"] == pytest.approx(privacy.epsilon(1.5, number, DELTA, (8, 4)))
        assert (info["clip"], info["noise_std"]) == (0.5, pytest.approx(1.5 * 0.5 / 4))
        assert 0 <= info["clipped_share"] <= 1
    said = about(tmp_path)
    assert said["epsilon"] == pytest.approx(infos[-1]["epsilon"])
    assert (said["delta"], said["rounds"], said["noise multiplier"]) == (pytest.approx(DELTA), 9, 1.5)
    assert said["neighbours"] == "one client replaced by any other"
    assert said["counted"].startswith("4 of 8 clients, uniformly without replacement, in every round; Rényi")
    assert len(said["not covered"]) == 1 and "losses" in said["not covered"][0]
    html.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "ε spent" in page and f"ε = {infos[-1]['epsilon']:.4g} at δ = 0.102 after 9 rounds" in page
    assert "Not covered: what metrics.jsonl" in page


def test_noise_hides_and_little_noise_does_not(small: Small, tmp_path: Path) -> None:
    """With hardly any noise and no row clipped, a private run is the run with uniform weights."""
    document = small({"strategy.weighting": "uniform"})
    plain = library.run(document, out=tmp_path / "plain")
    quiet = library.run({**document, "privacy": {"clip": 1e3, "noise_multiplier": 1e-9}}, out=tmp_path / "quiet")
    loud = library.run({**document, "privacy": {"clip": 1.0, "noise_multiplier": 10.0}}, out=tmp_path / "loud")
    far = {
        name: math.sqrt(sum(float((run.model[n] - value).square().sum()) for n, value in plain.model.items()))
        for name, run in (("quiet", quiet), ("loud", loud))
    }
    assert far["quiet"] < 1e-3 < 1 < far["loud"]


@pytest.mark.parametrize("changes", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("stopped", [1, 5])
def test_stopped_and_resumed_equals_uninterrupted(
    changes: dict[str, Any], stopped: int, small: Small, same: Same, tmp_path: Path
) -> None:
    document = small({**changes, "strategy.server": {"name": "adam", "lr": 0.01}})
    library.run(document, out=tmp_path / "whole")
    library.run(document, out=tmp_path / "part", callbacks=[lambda line: line["exchange"] + 1 >= stopped])
    library.resume_run(tmp_path / "part")
    same(tmp_path / "whole", tmp_path / "part")


def test_the_adaptive_norm_moves(small: Small, record: Record, tmp_path: Path) -> None:
    library.run(small(ADAPTIVE), out=tmp_path)
    infos = [line["info"] for line in record(tmp_path)]
    clips = [info["clip"] for info in infos]
    assert clips[0] == 0.1 and len(set(clips)) == 9
    # count_noise is the multiplier itself in a cohort of four
    factor = (0.5**-2 - (2 * 0.5) ** -2) ** -0.5
    assert [info["noise_std"] for info in infos] == pytest.approx([factor * clip / 4 for clip in clips])


def test_a_rejected_client_changes_neither_noise_nor_divisor(small: Small, record: Record, tmp_path: Path) -> None:
    attack = {"name": "sign_flip", "clients": [1, 2], "scale": 1e39}
    result = library.run(small({**FIXED, "attack": [attack]}), out=tmp_path)
    lines = record(tmp_path)
    assert any(line["rejected"] for line in lines)
    assert {line["info"]["noise_std"] for line in lines} == {1.5 * 0.5 / 4}
    assert result.state.rule.rounds == 9
    assert all(torch.isfinite(value).all() for value in result.model.values())


def test_serial_and_stacked_agree(small: Small, tmp_path: Path) -> None:
    runs = [
        library.run(small({**FIXED, "executor": name, "run.rounds": 3}), out=tmp_path / name)
        for name in ("serial", "stacked")
    ]
    for name, value in runs[0].model.items():
        torch.testing.assert_close(value, runs[1].model[name], rtol=1e-4, atol=1e-5)


# the budget


def test_the_noise_is_solved_for_and_kept(small: Small, tmp_path: Path) -> None:
    document = small({"privacy": {"clip": 0.5, "target_epsilon": 20.0}, "run.rounds": 4})
    library.run(document, out=tmp_path)
    said = about(tmp_path)
    assert 20 * (1 - 1e-4) < said["epsilon"] <= 20
    kept = tomllib.loads((tmp_path / "config.toml").read_text())["privacy"]
    assert kept == {"clip": 0.5, "target_epsilon": 20.0, "noise_multiplier": said["noise multiplier"]}
    assert library.resume_run(tmp_path).status == "finished"
    # more rounds with this noise would spend more
    with pytest.raises(ConfigError, match=r"6 rounds .* and 4 rounds no more than 20; lower run\.rounds") as refused:
        library.resume_run(tmp_path, ["run.rounds=6"])
    assert refused.value.where == "privacy.target_epsilon"


def test_a_budget_that_does_not_last_is_refused(small: Small) -> None:
    section = {"clip": 0.5, "noise_multiplier": 2.0, "target_epsilon": 6.0}
    with pytest.raises(ConfigError) as refused:
        guarantee(small({"privacy": section, "run.rounds": 500}))
    within = int(str(refused.value).split(", and ")[1].split()[0])
    assert 0 < within < 500
    assert guarantee(small({"privacy": section, "run.rounds": within}))["epsilon"] <= 6
    with pytest.raises(ConfigError):
        guarantee(small({"privacy": section, "run.rounds": within + 1}))


def test_delta_may_be_given(small: Small) -> None:
    said = guarantee(small({"privacy": {**FIXED["privacy"], "delta": 1e-6}}))
    assert (said["delta"], said["epsilon"]) == (1e-6, pytest.approx(privacy.epsilon(1.5, 9, 1e-6, (8, 4))))


# who takes part


def test_everybody_in_every_round(small: Small) -> None:
    said = guarantee(small({**FIXED, "participation.count": 8}))
    assert said["counted"].startswith("all 8 clients in every round; ")
    assert said["epsilon"] == pytest.approx(privacy.epsilon(1.5, 9, DELTA))


def test_clients_that_remember_are_counted_in_full(small: Small) -> None:
    said = guarantee(small({**FIXED, "strategy.optimizer_state": "kept", "optimizer.momentum": 0.9}))
    assert "without amplification by sampling, since clients remember" in said["counted"]
    assert said["epsilon"] == pytest.approx(privacy.epsilon(1.5, 9, DELTA))


@declare(sampling="independent")
@dataclass(frozen=True)
class in_turn(uniform):
    def choose(self, state: Any, count: int, pool: Tensor, key: Tensor) -> Tensor:
        return pool[:count]


@declare()
@dataclass(frozen=True)
class by_loss(uniform):
    pass


def test_a_choice_that_is_not_uniform_amplifies_nothing(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selectors_of_this_test", sys.modules[__name__])
    said = guarantee(small({**FIXED, "participation.name": "selectors_of_this_test:in_turn"}))
    assert "without amplification by sampling, since in_turn does not draw uniformly" in said["counted"]
    assert said["epsilon"] == pytest.approx(privacy.epsilon(1.5, 9, DELTA))
    with pytest.raises(ConfigError, match="by_loss does not say that whom it chooses is independent") as refused:
        guarantee(small({**FIXED, "participation.name": "selectors_of_this_test:by_loss"}))
    assert refused.value.where == "participation.name"


# what is refused, and what is not covered


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"aggregator": {"name": "krum", "f": 0}}, "aggregator.name", ["'krum' is no linear rule", "as mean"]),
        (
            {"aggregator": {"name": "mean", "pre": [{"name": "clipping", "bound": 1.0}]}},
            "aggregator.pre",
            ["'clipping + mean' is no linear rule"],
        ),
        ({"strategy.name": "scaffold"}, "privacy", ["'scaffold' does not say", "fedavg, fedprox"]),
        ({"strategy.name": "fednova"}, "privacy", ["'fednova' does not say"]),
        ({"strategy": {"name": "local_only"}}, "privacy", ["'local_only' does not say"]),
        (
            {"model": {"name": "resnet18", "width": 2, "norm": "batch"}},
            "model",
            ["has buffers", "without clipping and noise", 'norm = "group"'],
        ),
        ({"privacy": {"clip": 1.0}}, "privacy.noise_multiplier", ["give it, or target_epsilon"]),
        ({"privacy": {"noise_multiplier": 1.0}}, "privacy.clip", ["missing"]),
        ({"privacy.clip": 0.0}, "privacy.clip", ["greater than 0"]),
        ({"privacy.delta": 1.0}, "privacy.delta", ["less than 1"]),
        ({"privacy.epsilon": 1.0}, "privacy.epsilon", ["unknown key", "target_epsilon"]),
        ({"privacy.adaptive": {"quantil": 0.5}}, "privacy.adaptive.quantil", ["Did you mean 'quantile'?"]),
        (
            {"privacy.adaptive": {"count_noise": 0.7}},
            "privacy.adaptive.count_noise",
            ["more than half of the noise multiplier 1.5", "0.7 was given"],
        ),
        ({"data.clients": 1, "participation.count": 1}, "privacy.delta", ["with one client there is no default"]),
    ],
)
def test_refused(changes: dict[str, Any], where: str, words: list[str], small: Small) -> None:
    with pytest.raises(ConfigError) as refused:
        guarantee(small(copy.deepcopy({**FIXED, **changes})))
    assert refused.value.where == where
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(("name", "covered"), [("alie", False), ("sign_flip", True), ("label_flip", True)])
def test_attacks_that_read_the_rows_of_others_are_named(name: str, covered: bool, small: Small) -> None:
    said = guarantee(small({**FIXED, "attack": [{"name": name, "count": 2}]}))
    assert (f"rows that the attack {name} makes of other clients' rows" not in said["not covered"]) == covered


def test_the_missing_package_is_named(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedopt\[privacy\]'"):
        guarantee(small(FIXED))
    setups.build(configs.load(small()))


def test_from_python(small: Small, tmp_path: Path) -> None:
    document = small()
    experiment = library.Experiment(
        model=document["model"],
        data=document["data"],
        strategy=document["strategy"],
        participation=document["participation"],
        optimizer=document["optimizer"],
        run_options={"rounds": 2},
        privacy=FIXED["privacy"],
    )
    made = experiment.setup().strategy
    assert isinstance(made, fedavg) and made.aggregator.name == "private mean"
    assert experiment.run(tmp_path).history[-1]["info"]["epsilon"] > 0


def test_the_command_line(small: Small, write: Callable[..., Path], fedopt: Callable[..., Any], tmp_path: Path) -> None:
    path = write(small({**FIXED, "run.rounds": 2, "run.out": str(tmp_path / "run")}))
    checked = fedopt("check", path)
    assert checked.status == 0 and "privacy: {'epsilon': " in checked.out
    assert fedopt("run", path, "-q").status == 0
    assert about(tmp_path / "run")["rounds"] == 2
