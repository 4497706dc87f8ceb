"""Aggregation rules: `updates [n, d] -> [d]`.

A rule is written as a plain function `name(updates, *, ...offers, ...options) -> Tensor`, or, with a memory over
rounds, as a frozen dataclass of options with `init(n) -> state` and
`apply(updates, state, **offers) -> (delta, state, info)`. It names what it needs from `OFFERS` among its parameters;
`build` lifts both forms to `fedopt.types.Rule`. Where it depends on the options what a class needs, the parameter has
a default and the property `needs` names it.

What a rule says of a round is `info`: numbers by name, `trust [n]` for the weights that it gave to the rows, and
`kept_model`, a sentence, where it moves nothing for want of anything to trust.

What a rule says about itself, with `fedopt.registry.declare`:

    scope       "linear", "coordinate" or "vector" (the default)
    requires    the precondition in words, "n >= 2f + 3"; or a function of the options that `admits` names
    admits      (n, ...options) -> bool, the precondition itself; it may raise ValueError for options that contradict
                each other
    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the rule lawfully breaks, each with the reason
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from torch import Tensor

from fedopt.registry import Component, ConfigError, Registry, facts, parameters, validate
from fedopt.types import FedoptError, Info, Rule, Scope, State

OFFERS = ("weights", "clients", "previous", "reference", "trial", "key")
registry = Registry("aggregators", __name__, offers=OFFERS)

_FAR = 10_000


def build(name: str, options: Mapping[str, Any], where: str = "aggregator") -> Rule:
    """The rule of this name with these options.

    where: config path of the options, for messages.

    Raises ConfigError for an unknown name or option, a missing option, and one of another type or out of range.
    """
    return lift(registry.get(name, f"{where}.name"), options, where)


def lift(component: Component, options: Mapping[str, Any], where: str = "aggregator") -> Rule:
    """A plain function or a stateful class, with its options, as a Rule.

    The Rule's `apply` refuses fewer clients than the rule admits, and hands it only the offers that it names; `needs`
    are those without a default.

    Raises ConfigError as `build` does, and for a component of neither form.
    """
    name, declared = component.__name__, facts(component)
    given = validate(component, options, where, OFFERS)
    settings = {o.name: o.default for o in parameters(component).values() if o.name not in OFFERS} | given
    scope = declared.get("scope", "vector")
    if scope not in get_args(Scope):
        raise ConfigError(f"{where}.name", f"{name} declares the scope '{scope}'; one of {get_args(Scope)} is needed")
    refuse = precondition(name, declared, settings, where)
    if inspect.isclass(component):
        value = _stateful(component, given, where)
        init, work = value.init, value.apply
        named = inspect.signature(value.apply).parameters
    else:
        init, work = (lambda n: ()), _plain(component, given, where)
        named = inspect.signature(component).parameters
    offers = {p.name: p for p in named.values() if p.name in OFFERS}
    needs = frozenset(offer for offer, p in offers.items() if p.default is inspect.Parameter.empty)
    if inspect.isclass(component):
        needs |= frozenset(getattr(value, "needs", ()))

    def apply(updates: Tensor, state: State, **offered: Any) -> tuple[Tensor, State, Info]:
        message = refuse(updates.shape[0])
        if message:
            raise FedoptError(message)
        absent = needs - offered.keys()
        if absent:
            raise FedoptError(f"{name} needs {', '.join(sorted(absent))}, which this strategy does not offer")
        result: tuple[Tensor, State, Info] = work(updates, state, **{k: v for k, v in offered.items() if k in offers})
        return result

    return Rule(name, scope, needs, refuse, init, apply)


def _plain(rule: Component, given: Mapping[str, Any], where: str) -> Component:
    positional = [p.name for p in inspect.signature(rule).parameters.values() if p.kind in _POSITIONAL]
    if len(positional) != 1:
        raise ConfigError(
            f"{where}.name",
            f"{rule.__name__} takes {', '.join(positional) or 'nothing'} by position; a rule takes the updates alone,"
            f" and offers and options by keyword: {rule.__name__}(updates, *, ...)",
        )

    def work(updates: Tensor, state: State, **offered: Any) -> tuple[Tensor, State, Info]:
        return rule(updates, **offered, **given), state, {}

    return work


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _stateful(rule: Component, given: Mapping[str, Any], where: str) -> Any:
    try:
        value = rule(**given)
    except ValueError as error:
        raise ConfigError(where, str(error)) from None
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "apply", None))):
        raise ConfigError(
            f"{where}.name",
            f"{rule.__name__} is a class without init(n) -> state and"
            " apply(updates, state, **offers) -> (delta, state, info)",
        )
    return value


def precondition(
    name: str, declared: Mapping[str, Any], settings: Mapping[str, Any], where: str
) -> Callable[[int], str | None]:
    """`n -> None | words`: whether n clients are enough for a component that declares `admits` and `requires`."""
    admits = declared.get("admits")
    if admits is None:
        return lambda n: None
    named = [p for p in inspect.signature(admits).parameters if p != "n"]
    options = {p: settings[p] for p in named}

    def admitted(n: int) -> bool:
        try:
            return bool(admits(n=n, **options))
        except ValueError as error:
            raise ConfigError(where, f"{name}: {error}") from None

    def refuse(n: int) -> str | None:
        if admitted(n):
            return None
        requires = declared.get("requires", "more")
        if callable(requires):
            requires = requires(**options)
        # what the words speak of is what to change; an option that does not bind is left out
        binding = {k: v for k, v in options.items() if re.search(rf"(?<![^\W\d]){k}(?!\w)", requires)} or options
        values = ", ".join(f"{k} = {v}" for k, v in binding.items())
        least = next((k for k in range(1, _FAR) if admitted(k)), None)
        bound = "" if least is None else f" = {least}" if " >= " in requires else f" ({least} at the least)"
        lower = " and ".join(f"{where}.{k}" for k in binding)
        return (
            f"{name}{f' with {values}' if values else ''} needs {requires}{bound} clients per exchange, {n} were given;"
            f" {f'lower {lower} or ' if lower else ''}raise participation.count"
        )

    admitted(1)  # contradicting options are refused here, before any update is there
    return refuse
