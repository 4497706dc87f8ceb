"""Every strategy under every rule and every attack: two rounds, no crash, a finite model that moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt import aggregators, attacks, keys
from fedopt.data import pool
from fedopt.engine.adversary import Adversary, Group, Moment
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.registry import facts
from fedopt.strategies import registry
from fedopt.testing.strategies import compose, horizontal, play, small_federation, small_problem, spoiled
from fedopt.types import Batches, FedoptError, Rule
from tests.families import few

NAMES = horizontal()
TWO = ("aeg", "olga")
AVERAGING = [name for name in NAMES if "aggregator" in registry.wants(name)]
ATTACKERS = torch.tensor([1, 4])
SIZES = (5, 3, 6, 4, 5, 3, 4, 6, 5, 3, 4, 5)


def examples(room: Any, name: str) -> list[dict[str, Any]]:
    return [dict(options) for options in facts(room.registry.get(name)).get("examples", ({},))]


RULES = [(name, options) for name in aggregators.registry.names() for options in examples(aggregators, name)]
ATTACKS = [(name, options) for name in attacks.registry.names() for options in examples(attacks, name)]


def first(cases: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Each name once, with its first options."""
    return list({name: (name, options) for name, options in reversed(cases)}.values())[::-1]


def rule_for(name: str, options: dict[str, Any]) -> Rule:
    rule = aggregators.build(name, options)
    refusal = rule.admits(len(SIZES))
    assert refusal is None, f"give this test more clients: {refusal}"
    return rule


def adversary_of(name: str, options: dict[str, Any]) -> Adversary:
    group = Group(attacks.build(name, options), ATTACKERS)
    return Adversary((group,), fresh=lambda key: keys.normal(key, 18, dtype=torch.float64))


def withstands(made: Any, adversary: Adversary) -> None:
    """Two rounds on stacked clients without a crash: the model stays finite, and moves unless it is said why not."""
    data = adversary.poison(small_federation(SIZES), keys.root(0))
    problem = small_problem(pool(data) if facts(type(made)).get("pooled") else data)
    executor = Stacked()
    played = play(problem, made, 2, executor=executor, adversary=adversary)
    assert not executor.refused
    assert torch.isfinite(played.losses()).all()
    for step in played.steps:
        asked = set(step.replies.exchange.clients.tolist())
        assert {r.client for r in step.replies.rejected} <= set(ATTACKERS.tolist())
        assert {*step.replies.clients.tolist(), *(r.client for r in step.replies.rejected)} == asked
    if played.params is not None:
        assert torch.isfinite(played.params).all()
        kept = all("kept_model" in step.info for step in played.steps)
        nothing = adversary.groups[0].attack.name == "zero"  # a rule that takes one row may take one of zeros
        asks = "group" in played.steps[-1].info  # it may need more answers before it moves
        assert kept or nothing or asks or not torch.equal(played.params, problem.initial["params"])


@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
@pytest.mark.parametrize("strategy", few(AVERAGING, TWO))
def test_rule(strategy: str, rule: str, options: dict[str, Any]) -> None:
    withstands(compose(strategy, lr=0.05, aggregator=rule_for(rule, options)), adversary_of("sign_flip", {}))


@pytest.mark.parametrize(("attack", "options"), ATTACKS, ids=str)
@pytest.mark.parametrize("strategy", few(NAMES, TWO))
def test_attack(strategy: str, attack: str, options: dict[str, Any]) -> None:
    made, adversary = compose(strategy, lr=0.05), adversary_of(attack, options)
    if strategy == "ropo" and "outcome" in adversary.groups[0].attack.asks:
        with pytest.raises(FedoptError, match="no common model"):
            withstands(made, adversary)
        return
    withstands(made, adversary)


@pytest.mark.parametrize(("attack", "given"), first(ATTACKS), ids=str)
@pytest.mark.parametrize(("rule", "options"), first(RULES), ids=str)
def test_rule_and_attack(rule: str, options: dict[str, Any], attack: str, given: dict[str, Any]) -> None:
    withstands(compose("fedavg", lr=0.05, aggregator=rule_for(rule, options)), adversary_of(attack, given))


@pytest.mark.parametrize("scope", ["mean", "trimmed_mean"])
@pytest.mark.parametrize("strategy", few(AVERAGING, TWO))
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


@pytest.mark.parametrize("strategy", few(AVERAGING, TWO))
def test_an_attack_with_numbers_that_are_none_is_rejected(strategy: str) -> None:
    broken = attacks.build("sign_flip", {})._replace(vectors=lambda seen, b, **offers: seen * torch.inf)
    adversary = Adversary((Group(broken, ATTACKERS),))
    problem = small_problem(small_federation(SIZES))
    played = play(problem, compose(strategy), 2, adversary=adversary)
    for step in played.steps:
        asked = step.replies.exchange.clients
        assert [r.client for r in step.replies.rejected] == asked[torch.isin(asked, ATTACKERS)].tolist()
    assert played.params is not None
    assert torch.isfinite(played.params).all()


@pytest.mark.parametrize("strategy", few(AVERAGING, TWO))
def test_nobody_answers_under_an_attack(strategy: str) -> None:
    adversary = Adversary((Group(attacks.build("sign_flip", {}), ATTACKERS),))
    problem = small_problem(small_federation(SIZES))
    made = compose(strategy)
    key = keys.root(0)
    state = made.init(problem, key)
    programs = spoiled(made.programs(problem), lambda client: client.samples >= 0)
    exchange = made.plan(problem, state, key)
    memory = {name: first.expand(len(SIZES), *first.shape) for name, first in programs.memory.items()}
    replies = adversary.attacked(
        lambda asked: Serial().map(problem, programs, asked, memory, key), exchange, Moment(key, key, 0)
    )
    assert replies.clients.numel() == 0
    new, info = made.absorb(problem, state, replies, key)
    assert info["kept_model"] == "no answer was accepted"
    after, before = made.model(problem, new), made.model(problem, state)
    assert after is not None
    assert before is not None
    assert torch.equal(after["params"], before["params"])


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
