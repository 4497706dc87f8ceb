"""How functions and classes become rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt.aggregators import build, lift
from fedopt.registry import ConfigError, declare
from fedopt.types import FedoptError


def bare(updates: Tensor) -> Tensor:
    return updates[0]


def by_weight(updates: Tensor, *, weights: Tensor, previous: Tensor | None = None) -> Tensor:
    return updates[int(weights.argmax())] + (0.0 if previous is None else previous)


@declare(scope="vector", requires="n >= 2", admits=lambda n: n >= 2)
@dataclass(frozen=True)
class momentum:
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"0 <= beta < 1 is needed, {self.beta} was given")

    def init(self, n: int) -> Tensor:
        return torch.zeros(())

    def apply(self, updates: Tensor, state: Tensor, *, clients: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        state = self.beta * state + updates.mean(0)
        return state, state, {"clients": clients.tolist()}


def test_a_plain_function_sees_whole_vectors_and_admits_everything() -> None:
    rule = lift(bare, {})
    assert (rule.name, rule.scope, rule.needs, rule.admits(1)) == ("bare", "vector", frozenset(), None)
    state = rule.init(3)
    delta, after, info = rule.apply(torch.eye(3), state, weights=torch.ones(3), key=torch.tensor(0))
    assert delta.tolist() == [1, 0, 0]
    assert (after, info) == (state, {})


def test_needs_are_the_offers_without_a_default() -> None:
    rule = lift(by_weight, {})
    assert rule.needs == {"weights"}
    updates, weights = torch.eye(2), torch.tensor([1.0, 2.0])
    assert rule.apply(updates, (), weights=weights)[0].tolist() == [0, 1]
    assert rule.apply(updates, (), weights=weights, previous=torch.ones(2))[0].tolist() == [1, 2]
    with pytest.raises(FedoptError, match="by_weight needs weights, which this strategy does not offer"):
        rule.apply(updates, ())


def test_offers_are_no_options() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.weights: unknown option"):
        lift(by_weight, {"weights": [1, 2]})


def test_a_class_keeps_its_state() -> None:
    rule = lift(momentum, {"beta": 0.25})
    updates, clients = torch.eye(2), torch.arange(2)
    first, state, info = rule.apply(updates, rule.init(2), clients=clients, weights=torch.ones(2))
    second, _, _ = rule.apply(updates, state, clients=clients)
    assert rule.needs == {"clients"}
    assert info == {"clients": [0, 1]}
    assert (first.tolist(), second.tolist()) == ([0.5, 0.5], [0.625, 0.625])


def test_apply_refuses_what_is_not_admitted() -> None:
    rule = lift(momentum, {})
    message = "momentum needs n >= 2 = 2 clients per exchange, 1 were given; raise participation.count"
    assert rule.admits(1) == message
    with pytest.raises(FedoptError, match=message):
        rule.apply(torch.ones(1, 2), rule.init(1), clients=torch.arange(1))


def test_a_strict_bound_names_the_least_number() -> None:
    @declare(requires="n > 2f", admits=lambda n, f: n > 2 * f)
    def strict(updates: Tensor, *, f: int) -> Tensor:
        return updates[0]

    assert lift(strict, {"f": 3}, "rule").admits(6) == (
        "strict with f = 3 needs n > 2f (7 at the least) clients per exchange, 6 were given;"
        " lower rule.f or raise participation.count"
    )


def test_options_that_a_class_refuses_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^aggregator: 0 <= beta < 1 is needed, 2\.0 was given"):
        lift(momentum, {"beta": 2.0})


def test_components_of_another_form_are_refused() -> None:
    def two(updates: Tensor, weights: Tensor) -> Tensor:
        return updates[0]

    class nothing:
        pass

    @declare(scope="columns")
    def columns(updates: Tensor) -> Tensor:
        return updates[0]

    with pytest.raises(ConfigError, match=r"aggregator\.name: two takes updates, weights by position"):
        lift(two, {})
    with pytest.raises(ConfigError, match=r"aggregator\.name: nothing is a class without init"):
        lift(nothing, {})
    with pytest.raises(ConfigError, match=r"aggregator\.name: columns declares the scope 'columns'"):
        lift(columns, {})


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"rule\.name: no aggregators component 'krun'\. Did you mean 'krum'\?"):
        build("krun", {}, "rule")
