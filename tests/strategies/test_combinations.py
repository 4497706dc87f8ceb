"""Every strategy under every rule and every attack: two rounds, no crash, a finite model that moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt import aggregators, attacks, keys
from fedopt.engine.adversary import Adversary, Group
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.registry import facts
from fedopt.strategies import registry
from fedopt.testing.strategies import compose, play, small_federation, small_problem, spoiled
from fedopt.types import Batches, Rule

NAMES = registry.names()
AVERAGING = [name for name in NAMES if "aggregator" in registry.wants(name)]
ATTACKERS = torch.tensor([1, 4])
SIZES = (5, 3, 6, 4, 5, 3, 4, 6, 5, 3, 4, 5)


def examples(room: Any, name: str) -> list[dict[str, Any]]:
    return [dict(options) for options in facts(room.registry.get(name)).get("examples", ({},))]


RULES = [(name, options) for name in aggregators.registry.names() for options in examples(aggregators, name)]


def rule_for(name: str, options: dict[str, Any]) -> Rule:
    rule = aggregators.build(name, options)
    if "reference" in rule.needs:
        pytest.skip(f"no strategy computes a reference update, which {name} needs")
    refusal = rule.admits(len(SIZES))
    assert refusal is None, f"give this test more clients: {refusal}"
    return rule


@pytest.mark.parametrize("attack", attacks.registry.names())
@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
@pytest.mark.parametrize("strategy", AVERAGING)
def test_rule_and_attack(strategy: str, rule: str, options: dict[str, Any], attack: str) -> None:
    made = compose(strategy, lr=0.05, aggregator=rule_for(rule, options))
    data = small_federation(SIZES)
    for given in examples(attacks, attack):
        group = Group(attacks.build(attack, given), ATTACKERS)
        adversary = Adversary((group,))
        problem = small_problem(adversary.poison(data, keys.root(0)))
        executor = Stacked()
        played = play(problem, made, 2, executor=executor, adversary=adversary)
        assert not executor.refused
        assert played.params is not None
        assert torch.isfinite(played.params).all()
        assert not torch.equal(played.params, problem.initial["params"])
        for step in played.steps:
            assert "kept_model" not in step.info
            assert step.replies.clients.numel() == len(SIZES)


@pytest.mark.parametrize("attack", attacks.registry.names())
@pytest.mark.parametrize("strategy", [name for name in NAMES if name not in AVERAGING])
def test_attacks_on_strategies_without_a_rule(strategy: str, attack: str) -> None:
    made = compose(strategy, lr=0.05)
    data = small_federation(SIZES)
    for given in examples(attacks, attack):
        adversary = Adversary((Group(attacks.build(attack, given), ATTACKERS),))
        problem = small_problem(adversary.poison(data, keys.root(0)))
        played = play(problem, made, 2, executor=Stacked(), adversary=adversary)
        assert torch.isfinite(played.losses()).all()


@pytest.mark.parametrize("scope", ["mean", "trimmed_mean"])
@pytest.mark.parametrize("strategy", AVERAGING)
def test_an_attack_that_changes_nothing(strategy: str, scope: str) -> None:
    """The way through the adversary (rows, then the mean) ends where the way without one does."""
    made = compose(strategy, aggregator=aggregators.build(scope, {} if scope == "mean" else {"f": 1}))
    still = attacks.build("sign_flip", {})._replace(vectors=lambda seen, b, **offers: seen)
    problem = small_problem(small_federation(SIZES))
    group = Group(still, ATTACKERS)
    attacked, plain = (play(problem, made, 2, adversary=adversary) for adversary in (Adversary((group,)), Adversary()))
    assert attacked.params is not None
    assert plain.params is not None
    torch.testing.assert_close(attacked.params, plain.params, rtol=0, atol=1e-13)


@pytest.mark.parametrize("strategy", AVERAGING)
def test_an_attack_with_numbers_that_are_none_is_rejected(strategy: str) -> None:
    broken = attacks.build("sign_flip", {})._replace(vectors=lambda seen, b, **offers: seen * torch.inf)
    adversary = Adversary((Group(broken, ATTACKERS),))
    problem = small_problem(small_federation(SIZES))
    played = play(problem, compose(strategy), 2, adversary=adversary)
    for step in played.steps:
        assert [r.client for r in step.replies.rejected] == ATTACKERS.tolist()
    assert played.params is not None
    assert torch.isfinite(played.params).all()


@pytest.mark.parametrize("strategy", AVERAGING)
def test_nobody_answers_under_an_attack(strategy: str) -> None:
    adversary = Adversary((Group(attacks.build("sign_flip", {}), ATTACKERS),))
    problem = small_problem(small_federation(SIZES))
    made = compose(strategy)
    key = keys.root(0)
    state = made.init(problem, key)
    programs = spoiled(made.programs(problem), lambda client: client.samples >= 0)
    exchange = made.plan(problem, state, key)
    memory = {name: first.expand(len(SIZES), *first.shape) for name, first in programs.memory.items()}
    replies = adversary.attacked(lambda asked: Serial().map(problem, programs, asked, memory, key), exchange, key)
    assert replies.clients.numel() == 0
    new, info = made.absorb(problem, state, replies, key)
    assert info["kept_model"] == "no answer was accepted"
    assert torch.equal(new.model["params"], state.model["params"])


def test_scaffold_attackers_lie_in_their_control_variate_too() -> None:
    """Both vectors of the length of the model are what the attack makes of them."""
    adversary = Adversary((Group(attacks.build("sign_flip", {"scale": 3.0}), ATTACKERS),))
    problem = small_problem(small_federation(SIZES))
    made = compose("scaffold", aggregator=aggregators.build("trimmed_mean", {"f": 1}), batches=Batches(size=3))
    attacked, plain = (play(problem, made, 1, adversary=a).steps[0].replies for a in (adversary, Adversary()))
    for name in ("delta", "control"):
        for client in range(len(SIZES)):
            factor = -3.0 if client in ATTACKERS.tolist() else 1.0
            torch.testing.assert_close(attacked.vectors[name][client], factor * plain.vectors[name][client])
