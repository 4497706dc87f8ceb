"""The server's half that averaging methods share: choose a cohort, send the model, aggregate, step.

Functions over `Server`, the state of such a method; a strategy calls them and adds what is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import asks, hyper_parameters
from fedopt.problem import Problem
from fedopt.programs import HYPER, kept_state
from fedopt.ruled import by_client, refusal, ruled
from fedopt.types import (
    Batches,
    Exchange,
    FedoptError,
    Info,
    Named,
    Optimizer,
    Participation,
    Programs,
    Replies,
    Rule,
    State,
    Uplink,
)


class Parts(Protocol):
    """What a strategy of this family is composed of."""

    @property
    def participation(self) -> Participation: ...
    @property
    def aggregator(self) -> Rule: ...
    @property
    def server(self) -> Optimizer: ...
    @property
    def batches(self) -> Batches: ...
    def programs(self, problem: Problem) -> Programs: ...


class Server(NamedTuple):
    """State between rounds."""

    round: int
    model: Named
    optimizer: Any
    """State of the server optimizer."""
    rule: Any
    participation: Any
    previous: Tensor
    """The last aggregate `[d]` where the rule or the strategy asks for it, else empty."""
    own: Named
    """What the strategy itself keeps at the server."""


def init(
    parts: Parts,
    problem: Problem,
    own: Named | None = None,
    *,
    keep_previous: bool = False,
    server: Optimizer | None = None,
) -> Server:
    """First state: the problem's initial model, round 0.

    keep_previous: the last aggregate is kept whether the rule asks for it or not.
    server: in place of the server optimizer of the parts.
    """
    params, _ = problem.unpack(problem.initial)
    wants_previous = keep_previous or "previous" in parts.aggregator.needs
    return Server(
        round=0,
        model=dict(problem.initial),
        optimizer=(server or parts.server).init(params),
        rule=parts.aggregator.init(problem.clients),
        participation=parts.participation.init(problem),
        previous=torch.zeros(problem.d if wants_previous else 0, dtype=problem.dtype),
        own=own or {},
    )


def plan(
    parts: Parts,
    problem: Problem,
    state: Server,
    key: Tensor,
    *,
    optimizer: Optimizer | None,
    down: Named | None = None,
) -> Exchange:
    """The model to a cohort, with the local optimizer's numbers for this round and what the strategy adds."""
    pool = problem.pool
    ask = parts.participation.ask(state.participation, pool.numel())
    clients = parts.participation.choose(state.participation, ask.number, pool, keys.fold(key, "participation"))
    numbers = hyper_parameters(optimizer, state.round, problem.dtype) if optimizer is not None else {}
    return Exchange(
        program="train",
        clients=clients,
        down={**state.model, **{HYPER + name: value for name, value in numbers.items()}, **(down or {})},
        batches=parts.batches if ask.epochs is None else parts.batches._replace(epochs=ask.epochs),
        reduce="mean" if parts.aggregator.scope == "linear" and not ask.rows else "rows",
    )


def absorb(
    parts: Parts,
    problem: Problem,
    state: Server,
    replies: Replies,
    key: Tensor,
    *,
    scale: float | Tensor = 1.0,
    server: Optimizer | None = None,
    offers: Callable[[], dict[str, Any]] | None = None,
) -> tuple[Server, Info]:
    """delta = rule(deltas); x <- server optimizer's step along scale * delta, whose gradient is -scale * delta.

    A round in which nobody's answer was accepted, or too few for the rule, keeps the model and says so; a rule that
    needs to know how many were `asked` is told of no rows, too.

    server: in place of the server optimizer of the parts; offers: what its `update` is given beside the gradient, by
    default the clients' mean loss as `value`, where it asks for that.
    """
    server = server or parts.server
    selection, said = observed(parts.participation, problem, state.participation, state.model, replies, key)
    waiting = state._replace(round=state.round + 1, participation=selection)
    refused = refusal(parts.aggregator, replies)
    if refused is not None:
        return waiting, {**said, "kept_model": refused}
    delta, rule, info = ruled(
        parts.aggregator,
        state.rule,
        problem,
        lambda: parts.programs(problem),
        state.model,
        state.previous,
        replies,
        key,
    )
    params, _ = problem.unpack(state.model)
    descent = problem.network.spec.unflatten(-scale * delta)
    numbers = hyper_parameters(server, state.round, problem.dtype)
    given = offers() if offers is not None else {}
    if offers is None and "value" in asks(server):
        given = {"value": replies.metrics["loss"].mean()}
    params, optimizer = server.update(descent, state.optimizer, params, numbers, **given)
    model = {"params": problem.network.spec.flatten(params)}
    if "buffers" in replies.vectors:
        model["buffers"] = weighted_mean(replies.vectors["buffers"], replies.weights)
    new = Server(
        round=state.round + 1,
        model=model,
        optimizer=optimizer,
        rule=rule,
        participation=selection,
        previous=delta if state.previous.numel() else state.previous,
        own=state.own,
    )
    return new, {**said, **by_client(info, replies.clients), "delta_norm": float(delta.norm())}


def observed(
    participation: Participation, problem: Problem, state: State, model: Named | None, replies: Replies, key: Tensor
) -> tuple[State, Info]:
    """What the participation learns from the answers to an exchange in which `model` was sent."""
    offers: dict[str, Any] = {}
    if "key" in participation.needs:
        offers["key"] = keys.fold(key, "participation")
    if "loss" in participation.needs:
        if model is None:
            raise FedoptError(f"{participation.name} asks for the loss of the server's model, and there is none")
        offers["loss"] = problem._replace(trial_saturation=0.0).trial(model).loss
    return participation.observe(state, replies, **offers)


def weighted_mean(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i row_i / sum_i w_i; rows [n, k], weights [n]; the plain mean where all weights are zero."""
    total = weights.sum()
    share = torch.where(total > 0, weights / total, torch.ones_like(weights) / weights.numel())
    return (share[:, None] * rows).sum(dim=0)


def memory(optimizer: Optimizer, problem: Problem, keep_state: bool) -> Named:
    """The memory that keeps the local optimizer's state with its client, if asked for."""
    return kept_state(optimizer, problem) if keep_state else {}


def uniform_weight(uplink: Uplink) -> Uplink:
    """The same answer with weight 1: every client counts alike."""
    return uplink._replace(weight=torch.ones_like(uplink.weight))
