"""How functions become attacks, and what they are offered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.attacks import lift
from fedopt.registry import ConfigError, declare
from fedopt.types import FedoptError


def test_an_undeclared_function_is_omniscient_and_gets_what_it_names() -> None:
    def shout(honest: Tensor, *, b: int, loud: float = 2.0) -> Tensor:
        return honest.mean(0).expand(b, -1) * loud

    attack = lift(shout, {"loud": 3.0})
    assert (attack.name, attack.knowledge, attack.labels) == ("shout", "omniscient", None)
    assert attack.vectors is not None
    assert attack.vectors(torch.ones(3, 2), 2, key=keys.root(0), n=5).tolist() == [[3.0, 3.0]] * 2


def test_what_is_named_and_not_offered_is_an_error() -> None:
    def noise(honest: Tensor, *, b: int, key: Tensor) -> Tensor:
        return keys.normal(key, b, honest.shape[1])

    attack = lift(noise, {})
    assert attack.vectors is not None
    with pytest.raises(FedoptError, match="the attack noise needs key, which is not on offer here"):
        attack.vectors(torch.ones(3, 2), 2)


def test_an_answer_of_another_shape_is_an_error() -> None:
    def lazy(honest: Tensor) -> Tensor:
        return honest

    attack = lift(lazy, {})
    assert attack.vectors is not None
    with pytest.raises(
        FedoptError, match=r"the attack lazy has to answer for 2 attackers with \[2, 4\]; it gave \[3, 4\]"
    ):
        attack.vectors(torch.ones(3, 4), 2)


def test_components_of_another_form_are_refused() -> None:
    def two(honest: Tensor, b: int) -> Tensor:
        return honest

    class thing:
        pass

    @declare(knowledge="everything")
    def everything(honest: Tensor) -> Tensor:
        return honest

    with pytest.raises(ConfigError, match=r"attack\.name: two takes honest, b by position"):
        lift(two, {})
    with pytest.raises(ConfigError, match=r"attack\.name: thing is a class"):
        lift(thing, {})
    with pytest.raises(ConfigError, match=r"attack\.name: everything declares the knowledge 'everything'"):
        lift(everything, {})
