"""Groups: given, by classes, or found; constants that are measured; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.data import Federation, Shards, Split
from fedopt.registry import ConfigError
from fedopt.similarity.grouping import Grouping, rare_ones
from fedopt.similarity.groups import groups
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from tests.similarity import quadratics


def test_constants_are_measured_where_they_are_not_given() -> None:
    setup = quadratics.nodes("aeg", delta=None)
    state = quadratics.play(setup, distance=1e-10).state
    samples = setup.problem.data.splits["train"].x[:, :, :-1]
    own = setup.problem.data.server["trial"].x[0, :, :-1]
    wanted = float(torch.linalg.matrix_norm(samples.mean(dim=0) - own, 2))
    assert wanted * 0.95 <= state.constants["delta"] <= wanted * 1.06
    state = quadratics.play(quadratics.nodes("svrs", delta=None), rounds=100).state
    wanted = float(torch.linalg.matrix_norm(samples - samples.mean(dim=0), 2).max())
    assert wanted * 0.9 <= state.constants["delta"] <= wanted * 1.06


def test_the_more_similar_group_is_the_one_asked_rarely(caplog: pytest.LogCaptureFixture) -> None:
    straight = quadratics.play(quadratics.groups("c_aeg", 0.5, 4.0), gap=1e-8)
    assert straight.state.counted.rounds_f < straight.state.counted.rounds_g
    swapped = quadratics.experiment(
        {"name": "c_aeg", "mu": 0.1, "delta_f": 4.0, "delta_g": 0.5, "rare": [1]},
        {"kind": "groups", "delta_f": 4.0, "delta_g": 0.5},
    )
    run = quadratics.play(swapped, gap=1e-8)
    assert "they change places" in caplog.text
    assert run.state.constants["swapped"] == 1.0
    assert run.gap <= 1e-8
    assert run.state.counted.rounds_f < run.state.counted.rounds_g


def unlike(clients: int, strange: list[int]) -> Federation:
    """Least squares, in which some clients' features are five times as large."""
    x = keys.normal(keys.root(7), clients * 40 + 40, 6, dtype=torch.float64)
    y = x @ torch.arange(6.0, dtype=torch.float64) + 0.1
    trial = Split(x[-40:], y[-40:])
    x, y = x[:-40].clone(), y[:-40]
    for client in strange:
        x[40 * client : 40 * client + 40] *= 5.0
    shards = Shards(x, torch.arange(len(y)), y, 40 * torch.arange(clients + 1))
    names = tuple(map(str, range(clients)))
    return Federation({"train": shards}, {"trial": trial}, ("y",), names, "regression")


def test_the_farthest_client_is_measured() -> None:
    federation = unlike(8, [5])
    document = {
        "run": {"rounds": 100, "dtype": "float64"},
        "model": {"name": "logistic", "bias": False, "loss": "squares"},
        "strategy": {"name": "svrs", "l2": 0.1},
        "executor": {"name": "serial"},
    }
    setup = setups.build(configs.load(document), data=federation)
    state = play(setup.problem, setup.strategy, 70).state
    x = federation.splits["train"].x.reshape(8, 40, 6)
    hessians = x.transpose(1, 2) @ x / 40
    wanted = float(torch.linalg.matrix_norm(hessians - hessians.mean(dim=0), 2).max())
    assert wanted * 0.95 <= state.constants["delta"] <= wanted * 1.06


def automatic(federation: Federation, **options: Any) -> setups.Setup:
    document = {
        "run": {"rounds": 100, "dtype": "float64"},
        "model": {"name": "logistic", "bias": False, "loss": "squares"},
        "strategy": {"name": "c_aeg", "l2": 0.1, "rare": "auto", **options},
        "executor": {"name": "stacked"},
    }
    return setups.build(configs.load(document), data=federation)


def test_strange_clients_are_found() -> None:
    for strange in ([2, 5], [0], [1, 3, 4]):
        setup = automatic(unlike(8, strange))
        played = play(setup.problem, setup.strategy, 40)
        assert played.state.rare.tolist() == strange
        assert played.steps[3].info["rare"] == strange
        counted = played.steps[3].info
        assert (counted["rounds_f"], counted["rounds_g"], counted["messages"]) == (4, 4, 4 * 16)
        assert played.state.constants["delta_g"] > 5 * played.state.constants["delta_f"]
    setup = automatic(unlike(8, [2]), rare_share=0.5)
    assert len(play(setup.problem, setup.strategy, 6).state.rare) == 4


def test_the_cut_is_the_one_of_least_squares() -> None:
    def cut(squares: list[float], share: float | None = None) -> list[int]:
        return rare_ones(Grouping(torch.zeros(1, 1), torch.zeros(0), torch.tensor(squares), 4), share).tolist()

    assert cut([1.0, 1.1, 90.0, 0.9, 110.0]) == [2, 4]
    assert cut([5.0, 5.0]) == [1]
    assert cut([1.0, 2.0, 3.0, 4.0], 0.01) == [3]
    assert cut([1.0, 2.0, 3.0, 4.0], 0.99) == [1, 2, 3]


def test_classes_tell_samples_apart() -> None:
    problem = small_problem(small_federation())
    parts = groups(problem, (), (2, 0))
    assert parts.classes == (0, 2)
    y = torch.tensor([0, 1, 2, 1])
    assert parts.mask("g", y).tolist() == [True, False, True, False]
    assert parts.mask("f", y).tolist() == [False, True, False, True]
    # f + g is the sum of the means of the parts, over those who have any
    strategy = compose("agd", rare_classes=(0, 2), smooth=4.0)
    played = play(problem, strategy, 2)
    shards = problem.data.splits["train"]
    owner = torch.repeat_interleave(torch.arange(shards.clients), shards.sizes)
    w = torch.zeros(problem.d, dtype=torch.float64) + problem.initial["params"]

    def mean(mine: Tensor) -> Tensor:
        each = []
        for client in range(shards.clients):
            rows = mine & (owner == client)
            if rows.any():
                params = problem.network.spec.unflatten(w)
                outputs = problem.network.infer(params, {}, shards.x[shards.index[rows]])
                each.append(problem.per_sample(outputs, shards.y[rows]).mean())
        return torch.stack(each).mean()

    w.requires_grad_()
    rare = (shards.y == 0) | (shards.y == 2)
    (slope,) = torch.autograd.grad(mean(rare) + mean(~rare) + 0.25 * w @ w, w)
    assert played.params is not None
    torch.testing.assert_close(played.params, (w - slope / 4.0).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rare": (9,)}, r"strategy.rare: clients 0 to 5 are there; \[9\] given"),
        ({"rare": tuple(range(6))}, "all clients are rare ones"),
        ({"rare": (1,), "rare_classes": (0,)}, "not by both"),
        ({"rare_classes": (5,)}, "classes 0 to 2 are needed"),
        ({"rare_classes": (0, 1, 2)}, "some, not all, of the classes"),
        ({"rare_classes": ()}, "two groups are needed; name the clients, or the classes"),
    ],
)
def test_groups_that_cannot_be(options: dict[str, Any], message: str) -> None:
    given = {"rare_classes": (), **options}
    with pytest.raises(ConfigError, match=message):
        play(small_problem(small_federation()), compose("c_aeg", **given), 1)


def test_the_modulus_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"strategy.mu: the modulus of strong convexity is needed: set strategy.l2"):
        play(small_problem(small_federation()), compose("aeg", l2=0.0), 1)


def test_a_server_without_samples_of_a_part() -> None:
    data = small_federation()
    trial = data.server["trial"]
    common = trial.y != 0
    data = data._replace(server={**data.server, "trial": Split(trial.x[common], trial.y[common])})
    with pytest.raises(ConfigError, match="the server needs samples of both parts, and none of its"):
        play(small_problem(data), compose("c_aeg", rare_classes=(0,)), 1)
    with pytest.raises(ConfigError, match="a trial set is needed"):
        play(small_problem(data._replace(server={})), compose("aeg"), 1)


def test_codecs_that_do_not_fit() -> None:
    data = {"kind": "nodes", "nodes": 3}
    with pytest.raises(ConfigError, match="an unbiased codec is needed, 'topk' is none; see ef_olga"):
        quadratics.play(
            quadratics.experiment({"name": "olga", **quadratics.NODES}, data, {"name": "topk", "share": 0.2}), rounds=3
        )


def test_too_many_are_asked() -> None:
    with pytest.raises(ConfigError, match=r"strategy.take: at most 6 clients are there; 7 given"):
        play(small_problem(small_federation()), compose("aseg", take=7), 1)


def test_a_question_that_nobody_answers_is_asked_once_more() -> None:
    from fedopt.testing.strategies import spoiled

    problem = small_problem(small_federation())
    strategy = compose("aeg")

    class Spoilt:
        def __getattr__(self, name: str) -> Any:
            return getattr(strategy, name)

        def programs(self, problem: Any) -> Any:
            return spoiled(strategy.programs(problem), lambda client: client.samples >= 0)

    state = strategy.init(problem, keys.root(0))
    asked = strategy.plan(problem, state, keys.root(1))
    played = play(problem, Spoilt(), 2)  # type: ignore[arg-type]
    assert [step.info["kept_model"] for step in played.steps] == ["no answer was accepted"] * 2
    assert torch.equal(played.steps[1].replies.exchange.down["params"], asked.down["params"])
