"""Attacks: `seen [k, d] -> [b, d]` on vectors, `labels -> labels` on data.

An attack is a plain function, `name(seen, *, b, n, key, ...options) -> Tensor` on vectors or
`name(labels, *, classes, key, ...options) -> Tensor` on data; of `b`, `n`, `classes` and `key` it names what it needs.
`build` lifts it to `fedopt.types.Attack`. Nothing about the aggregation rule is on offer: an attack that depends on the
defence has to say so in its options.

What an attack says about itself, with `fedopt.registry.declare`:

    knowledge   what is handed to it: "own" (each attacker's own honest row, `[b, d]`; row i of the answer depends on
                row i alone), "colluders" (the attackers' honest rows, `[b, d]`), "omniscient" (the honest clients'
                rows, `[h, d]`; the default), or "data" (labels)
    check       (...options) -> None, which raises ValueError for options that contradict each other
    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the attack lawfully breaks, each with the reason
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from torch import Tensor

from fedopt.registry import Component, ConfigError, Registry, facts, parameters, validate
from fedopt.types import Attack, FedoptError, Knowledge

OFFERS = ("b", "n", "classes", "key")
registry = Registry("attacks", __name__, offers=OFFERS)


def build(name: str, options: Mapping[str, Any], where: str = "attack") -> Attack:
    """The attack of this name with these options.

    where: config path of the options, for messages.

    Raises ConfigError for an unknown name or option, a missing option, and one of another type or out of range.
    """
    return lift(registry.get(name, f"{where}.name"), options, where)


def lift(component: Component, options: Mapping[str, Any], where: str = "attack") -> Attack:
    """A plain function with its options as an Attack; it is handed only the offers that it names.

    Raises ConfigError as `build` does, and for a component of another form.
    """
    name, knowledge = component.__name__, facts(component).get("knowledge", "omniscient")
    if knowledge not in get_args(Knowledge):
        raise ConfigError(
            f"{where}.name", f"{name} declares the knowledge '{knowledge}'; one of {get_args(Knowledge)} is needed"
        )
    if inspect.isclass(component):
        raise ConfigError(f"{where}.name", f"{name} is a class; an attack is a function {name}(seen, *, ...) -> Tensor")
    signature = inspect.signature(component).parameters.values()
    positional = [p.name for p in signature if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != 1:
        raise ConfigError(
            f"{where}.name",
            f"{name} takes {', '.join(positional) or 'nothing'} by position; an attack takes what it sees alone, and"
            f" offers and options by keyword: {name}(seen, *, ...)",
        )
    given = validate(component, options, where, OFFERS)
    _check(component, given, where)
    named = {p.name: p.default is p.empty for p in signature if p.name in OFFERS}

    def offered(**offers: Any) -> dict[str, Any]:
        for offer, required in named.items():
            if required and offers.get(offer) is None:
                raise FedoptError(f"the attack {name} needs {offer}, which is not on offer here")
        return {offer: value for offer, value in offers.items() if offer in named and value is not None}

    def vectors(seen: Tensor, b: int, *, key: Tensor | None = None, n: int | None = None) -> Tensor:
        sent: Tensor = component(seen, **offered(b=b, n=n, key=key), **given)
        if sent.shape != (b, seen.shape[1]):
            raise FedoptError(
                f"the attack {name} has to answer for {b} attackers with [{b}, {seen.shape[1]}];"
                f" it gave {list(sent.shape)}"
            )
        return sent

    def labels(labels: Tensor, classes: int, key: Tensor | None = None) -> Tensor:
        flipped: Tensor = component(labels, **offered(classes=classes, key=key), **given)
        if flipped.shape != labels.shape:
            raise FedoptError(
                f"the attack {name} has to give labels {list(labels.shape)}; it gave {list(flipped.shape)}"
            )
        return flipped

    if knowledge == "data":
        return Attack(name, knowledge, None, labels)
    return Attack(name, knowledge, vectors, None)


def _check(component: Component, given: Mapping[str, Any], where: str) -> None:
    check = facts(component).get("check")
    if check is None:
        return
    settings = {name: o.default for name, o in parameters(component).items()} | dict(given)
    try:
        check(**{name: settings[name] for name in inspect.signature(check).parameters})
    except ValueError as error:
        raise ConfigError(where, f"{component.__name__}: {error}") from None
