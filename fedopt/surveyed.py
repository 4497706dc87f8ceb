"""A strategy whose selector wants more of the clients than their updates; any strategy, any selector.

Measures are numbers that a client reports along with what it trained:

    received_loss   mean loss of the model that it was sent, over the batches that it trained on

Surveys are exchanges of their own before somebody is chosen, whose answers are numbers alone:

    loss            mean loss of the model as it stands, on the client's validation part (training part without one)
    end_loss        the same of the model that the client itself trained last
    noise           ‖std over its training batches of the gradient‖ at the model that it trained last, dividing by their
                    number

Their bytes are counted like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.programs import evaluation, sgd_step
from fedopt.types import (
    Batch,
    Batches,
    Carry,
    Client,
    ClientProgram,
    Exchange,
    Info,
    Named,
    Participation,
    Programs,
    Replies,
    State,
    Strategy,
    Uplink,
)

PREFIX = "survey."
"""Of the names of programs, and of the key in a client's memory."""

END = f"{PREFIX}end"
"""The model that a client trained last `[d]`, in its memory."""

MEASURES = frozenset({"received_loss"})
SURVEYS = frozenset({"loss", "end_loss", "noise"})

_AT_THE_END = frozenset({"end_loss", "noise"})
"""Surveys about the model that a client trained last."""

_BATCH = 512
"""Samples that a client evaluates at a time."""


@dataclass(frozen=True)
class Surveyed:
    """`inner` with the exchanges and the numbers that its participation asks for.

    batches: how clients walk over their data when they train.
    """

    inner: Strategy
    participation: Participation
    batches: Batches

    def programs(self, problem: Problem) -> Programs:
        inner = self.inner.programs(problem)
        remembers = bool(self.participation.surveys & _AT_THE_END)
        work = dict(inner.work)
        for name, program in inner.work.items():
            if name != "evaluate":
                measured = _measuring(problem, program) if "received_loss" in self.participation.measures else program
                work[name] = _remembering(problem, measured) if remembers else measured
        asked: dict[str, Callable[[Problem], ClientProgram]] = {
            "loss": evaluation,
            "end_loss": lambda problem: evaluation(problem, _ended),
            "noise": _noise,
        }
        work |= {PREFIX + name: asked[name](problem) for name in sorted(self.participation.surveys)}
        return inner._replace(
            work=work, memory={**inner.memory, **({END: problem.initial["params"]} if remembers else {})}
        )

    def init(self, problem: Problem, key: Tensor) -> State:
        return self.inner.init(problem, key)

    def plan(self, problem: Problem, state: State, key: Tensor) -> Exchange:
        question = self.participation.survey(_server(state).participation, problem.pool, keys.fold(key, "survey"))
        if question is None:
            return self.inner.plan(problem, state, key)
        down: Named = {}
        if question.program not in _AT_THE_END or "buffers" in problem.initial:
            down = dict(_server(state).model)
        if question.candidate is not None:
            down["params"] = question.candidate
        held_out = "valid" in problem.data.splits and question.program != "noise"
        batches = Batches("valid" if held_out else "train", _BATCH, shuffle=False)
        if question.program == "noise":
            batches = Batches(size=self.batches.size, shuffle=False)
        return Exchange(PREFIX + question.program, question.clients, down, batches=batches, keep=question.by)

    def absorb(self, problem: Problem, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]:
        if not replies.exchange.program.startswith(PREFIX):
            return self.inner.absorb(problem, state, replies, key)
        server = _server(state)
        selection, info = self.participation.heard(server.participation, replies)
        server = server._replace(participation=selection)
        return (server if hasattr(state, "participation") else state._replace(server=server)), info

    def model(self, problem: Problem, state: State) -> Named | None:
        return self.inner.model(problem, state)


def _server(state: State) -> Any:
    """The part of a strategy's state that has the participation and the model."""
    return state if hasattr(state, "participation") else state.server


def _sent(client: Client) -> Named:
    """The model that the client starts from: its own row, or what all were sent."""
    return {**client.down, **client.own}


def _ended(client: Client) -> Named:
    return {**client.down, "params": client.memory[END]}


class _Measured(NamedTuple):
    inner: Carry
    loss: Tensor
    seen: Tensor


def _measuring(problem: Problem, program: ClientProgram) -> ClientProgram:
    """The program, which also reports the loss of the model that was sent."""

    def start(client: Client) -> _Measured:
        zero = client.key.new_zeros((), dtype=problem.dtype)
        return _Measured(program.start(client), zero, zero)

    def step(client: Client, carry: _Measured, batch: Batch) -> _Measured:
        params, buffers = problem.unpack(_sent(client))
        with torch.no_grad():
            each = problem.per_sample(problem.network.infer(params, buffers, batch["x"]), batch["y"])
        mask = batch["mask"].to(each.dtype)
        inner = program.step(client, carry.inner, batch)
        return _Measured(inner, carry.loss + (each * mask).sum(), carry.seen + mask.sum())

    def finish(client: Client, carry: _Measured) -> Uplink:
        uplink = program.finish(client, carry.inner)
        return uplink._replace(metrics={**uplink.metrics, "received_loss": carry.loss / carry.seen.clamp(min=1.0)})

    return ClientProgram(start, step, finish)


def _remembering(problem: Problem, program: ClientProgram) -> ClientProgram:
    """The program, whose client keeps where it ended."""

    def finish(client: Client, carry: Carry) -> Uplink:
        uplink = program.finish(client, carry)
        if "delta" not in uplink.vectors or "params" not in _sent(client):  # it trained no model of its own
            return uplink
        end = _sent(client)["params"] + uplink.vectors["delta"]
        return uplink._replace(memory={**uplink.memory, END: end})

    return program._replace(finish=finish)


class _Spread(NamedTuple):
    total: Tensor
    squares: Tensor
    batches: Tensor


def _noise(problem: Problem) -> ClientProgram:
    """The noise of a client's batch gradients at the model that it trained last."""

    def start(client: Client) -> _Spread:
        zeros = torch.zeros_like(client.memory[END])
        return _Spread(zeros, zeros, client.key.new_zeros((), dtype=problem.dtype))

    def step(client: Client, carry: _Spread, batch: Batch) -> _Spread:
        params, buffers = problem.unpack({**client.down, "params": client.memory[END]})
        grads, _, _ = sgd_step(problem, client, params, buffers, batch, carry.batches.to(torch.int64))
        g = problem.network.spec.flatten(grads)
        real = batch["mask"].any().to(g.dtype)  # a step of padding alone is none
        return _Spread(carry.total + real * g, carry.squares + real * g.square(), carry.batches + real)

    def finish(client: Client, carry: _Spread) -> Uplink:
        count = carry.batches.clamp(min=1.0)
        variance = carry.squares / count - (carry.total / count).square()
        noise = variance.clamp(min=0.0).sum().sqrt()
        return Uplink({}, {"noise": noise}, {}, client.samples.to(problem.dtype))

    return ClientProgram(start, step, finish)
