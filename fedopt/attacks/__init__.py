"""Attacks: `seen [k, d] -> [b, d]` on vectors, `labels -> labels` and `(x, y) -> (x, y)` on data.

An attack is a plain function: `name(seen, *, ...offers, ...options) -> Tensor` on vectors,
`name(labels, *, classes, key, ...options) -> Tensor` on labels, or
`name(x, y, *, classes, key, i, b, ...options) -> (x, y)` on samples with their labels. It names among its parameters
what it needs of what is on offer; `build` lifts it to `fedopt.types.Attack`. On vectors:

    b, n        attackers and clients of this exchange
    key         a counter key, another one in each exchange and for each vector
    round       number of the exchange
    own         what the attackers would honestly send `[b, d]`
    model       the parameters that the server sent `[d]`
    fresh       `key -> [d]`, first parameters as another run would draw them
    outcome     `sent [b, d] -> [d]`, what the server's model would move by; it runs the whole of the server's step, and
                is on offer to omniscient attacks alone

On data `i` is the attacker's number among the `b` attackers of its group.

What an attack says about itself, with `fedopt.registry.declare`:

    knowledge   what is handed to it: "nothing" (rows `[b, d]` of which the shape alone means anything), "own" (each
                attacker's own honest row, `[b, d]`; row i of the answer depends on row i alone), "colluders" (the
                attackers' honest rows, `[b, d]`), "omniscient" (the honest clients' rows, `[h, d]`; the default),
                "data" (labels), or "samples" (samples and labels). Attackers under "nothing", and under "omniscient"
                where `own` is not asked for, need not train, and where the strategy allows it they do not
    check       (...options) -> None, which raises ValueError for options that contradict each other
    trigger     of a backdoor: `(x, *, ...options) -> x`, every sample with the whole trigger
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

OFFERS = ("b", "n", "classes", "key", "i", "round", "own", "model", "fresh", "outcome")
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
    takes = "x, y" if knowledge == "samples" else "seen"
    if len(positional) != len(takes.split(", ")):
        raise ConfigError(
            f"{where}.name",
            f"{name} takes {', '.join(positional) or 'nothing'} by position; an attack takes what it sees alone, and"
            f" offers and options by keyword: {name}({takes}, *, ...)",
        )
    given = validate(component, options, where, OFFERS)
    _check(component, given, where)
    # what stands by position is what the attack sees, whatever it calls it
    named = {p.name: p.default is p.empty for p in signature if p.name in OFFERS and p.kind is p.KEYWORD_ONLY}

    def offered(**offers: Any) -> dict[str, Any]:
        for offer, required in named.items():
            if required and offers.get(offer) is None:
                raise FedoptError(f"the attack {name} needs {offer}, which is not on offer here")
        return {offer: value for offer, value in offers.items() if offer in named and value is not None}

    if "outcome" in named and knowledge != "omniscient":
        raise ConfigError(f"{where}.name", f"{name} asks for outcome, which only an omniscient attack is given")

    def vectors(seen: Tensor, b: int, **offers: Any) -> Tensor:
        sent: Tensor = component(seen, **offered(b=b, **offers), **given)
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

    def samples(x: Tensor, y: Tensor, **offers: Any) -> tuple[Tensor, Tensor]:
        changed: tuple[Tensor, Tensor] = component(x, y, **offered(**offers), **given)
        if tuple(part.shape for part in changed) != (x.shape, y.shape):
            raise FedoptError(
                f"the attack {name} has to give samples {list(x.shape)} and labels {list(y.shape)};"
                f" it gave {[list(part.shape) for part in changed]}"
            )
        return changed

    asks = frozenset(named)
    if knowledge == "data":
        return Attack(name, knowledge, None, labels, asks=asks)
    if knowledge == "samples":
        stamp, settings = facts(component).get("trigger"), _settings(component, given)
        trigger = None if stamp is None else lambda x: stamp(x, **_named(stamp, settings))
        return Attack(name, knowledge, None, None, samples, trigger, settings.get("target"), asks)
    return Attack(name, knowledge, vectors, None, asks=asks)


def _settings(component: Component, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options with their values."""
    return {name: o.default for name, o in parameters(component).items() if name not in OFFERS} | dict(given)


def _named(function: Component, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values that the function has a parameter for."""
    return {name: values[name] for name in inspect.signature(function).parameters if name in values}


def _check(component: Component, given: Mapping[str, Any], where: str) -> None:
    check = facts(component).get("check")
    if check is None:
        return
    try:
        check(**_named(check, _settings(component, given)))
    except ValueError as error:
        raise ConfigError(where, f"{component.__name__}: {error}") from None
