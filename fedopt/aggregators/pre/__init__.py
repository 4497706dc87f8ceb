"""Pre-aggregations: `updates [n, d] -> [m, d]`, done before a rule sees the rows.

A pre-aggregation is a plain function `name(updates, *, ...offers, ...options) -> Tensor`; of the offers of rules it may
name `weights`, `clients` and `key`. `build` lifts it to `Step`, `composed` puts steps before a rule.

What it says about itself, with `fedopt.registry.declare`:

    rows        "same": row i of the result belongs to client i; "fewer": rows belong to nobody
    count       (n, ...options) -> m, how many rows come out, for `rows = "fewer"`
    requires, admits, examples    as for rules
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import precondition
from fedopt.registry import Component, ConfigError, Registry, facts, parameters, validate
from fedopt.types import FedoptError, Info, Rule, State

OFFERS = ("weights", "clients", "key")
registry = Registry("pre", __name__, offers=OFFERS)


class Step(NamedTuple):
    """A pre-aggregation with its options: `apply(updates [n, d], **offers) -> [m, d]`."""

    name: str
    rows: str
    admits: Callable[[int], str | None]
    """None if n clients are enough, else what is needed and given."""
    count: Callable[[int], int]
    """Rows that come out of n."""
    apply: Callable[..., Tensor]


def build(name: str, options: Mapping[str, Any], where: str = "aggregator.pre.0") -> Step:
    """The pre-aggregation of this name with these options.

    where: config path of the options, for messages.

    Raises ConfigError for an unknown name or option, a missing option, and one of another type or out of range.
    """
    return lift(registry.get(name, f"{where}.name"), options, where)


def lift(component: Component, options: Mapping[str, Any], where: str = "aggregator.pre.0") -> Step:
    """A plain function with its options as a Step; it is handed only the offers that it names.

    Raises ConfigError as `build` does, and for a component of another form.
    """
    name, declared = component.__name__, facts(component)
    if inspect.isclass(component):
        raise ConfigError(
            f"{where}.name", f"{name} is a class; a pre-aggregation is a function {name}(updates, *, ...)"
        )
    rows = declared.get("rows", "same")
    if rows not in ("same", "fewer") or (rows == "fewer") != ("count" in declared):
        raise ConfigError(
            f"{where}.name", f'{name} has to declare rows = "same", or rows = "fewer" with count(n, ...options)'
        )
    given = validate(component, options, where, OFFERS)
    settings = {o.name: o.default for o in parameters(component).values() if o.name not in OFFERS} | given
    refuse = precondition(name, declared, settings, where)
    named = {p.name for p in inspect.signature(component).parameters.values() if p.name in OFFERS}
    counted = declared.get("count")
    wanted = {k: settings[k] for k in inspect.signature(counted).parameters if k != "n"} if counted else {}

    def count(n: int) -> int:
        return int(counted(n=n, **wanted)) if counted else n

    def apply(updates: Tensor, **offered: Any) -> Tensor:
        message = refuse(updates.shape[0])
        if message:
            raise FedoptError(message)
        changed: Tensor = component(updates, **{k: v for k, v in offered.items() if k in named}, **given)
        return changed

    return Step(name, rows, refuse, count, apply)


def composed(rule: Rule, steps: Sequence[Step], where: str = "aggregator") -> Rule:
    """The rule after the steps, in their order.

    From a step on after which rows belong to nobody, all rows weigh alike, and a rule that keeps something of each
    client is refused with a ConfigError.
    """
    if not steps:
        return rule
    mixing = next((step.name for step in steps if step.rows == "fewer"), None)
    if mixing is not None and "clients" in rule.needs:
        raise ConfigError(
            f"{where}.pre",
            f"the rule '{rule.name}' has to know whose each row is, and after '{mixing}' the rows belong to nobody;"
            f" remove '{mixing}' or take another rule",
        )

    def admits(n: int) -> str | None:
        left = n
        for step in steps:
            refusal = step.admits(left)
            if refusal is not None:
                return refusal
            left = step.count(left)
        refusal = rule.admits(left)
        return refusal if refusal is None or left == n else f"{refusal}; of {n} clients {left} rows reach the rule"

    def apply(updates: Tensor, state: State, **offers: Any) -> tuple[Tensor, State, Info]:
        for number, step in enumerate(steps):
            key = offers.get("key")
            here = {**offers, "key": None if key is None else keys.fold(key, "pre", number)}
            updates = step.apply(updates, **here)
            if step.rows == "fewer":
                m = updates.shape[0]
                offers = {**offers, "weights": updates.new_ones(m), "clients": torch.arange(m)}
        return rule.apply(updates, state, **offers)

    name = " + ".join([*(step.name for step in steps), rule.name])
    return Rule(name, "vector", rule.needs, admits, rule.init, apply)
