"""An aggregation rule applied to the answers of an exchange, with the offers that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.programs import at_server
from fedopt.types import Info, Named, Programs, Replies, Rule, State


class Ruled(NamedTuple):
    """What a rule makes of rows."""

    vector: Tensor
    """`[d]`"""
    state: State
    info: Info


def refusal(rule: Rule, replies: Replies) -> str | None:
    """Why there is nothing to apply a rule to: no answer, or too few; a rule told how many were asked takes none."""
    accepted = replies.clients.numel()
    silence = accepted == 0 and "asked" not in rule.needs
    return "no answer was accepted" if silence else rule.admits(accepted)


def ruled(
    rule: Rule,
    state: State,
    problem: Problem,
    programs: Callable[[], Programs],
    model: Named,
    previous: Tensor,
    replies: Replies,
    key: Tensor,
    *,
    vector: str = "delta",
) -> Ruled:
    """rule(rows of `vector`), around the model that the rows are steps from.

    programs: the clients' programs, by which the server makes a reference of its own where the rule asks for one.
    previous: what the rule gave before, where it asks for that.
    """
    offers: dict[str, Any] = {"weights": replies.weights, "clients": replies.clients, "key": keys.fold(key, "rule")}
    if "asked" in rule.needs:
        offers["asked"] = replies.exchange.clients.numel()
    if "previous" in rule.needs:
        offers["previous"] = previous
    if "trial" in rule.needs:
        offers["trial"] = problem.trial(model)
    if "reference" in rule.needs:
        split, word = problem.server_split("trial"), keys.fold(key, "reference")
        offers["reference"] = at_server(problem, programs(), replies.exchange, split, word).vectors[vector]
    return Ruled(*rule.apply(replies.vectors[vector], state, **offers))


def by_client(info: Info, clients: Tensor) -> Info:
    """What a rule says; the trust that it put in each row is told by client, where rows are clients'."""
    trust = info.get("trust")
    if not isinstance(trust, Tensor):
        return info
    rest = {name: value for name, value in info.items() if name != "trust"}
    if trust.numel() != clients.numel():  # a step before the rule mixed them
        return rest
    return {**rest, "trust": dict(zip(map(str, clients.tolist()), trust.tolist(), strict=True))}
