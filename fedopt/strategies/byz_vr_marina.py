"""Byz-VR-MARINA: variance-reduced gradient differences under a robust rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.programs import evaluation, gradient, sgd_step
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import (
    Batch,
    Batches,
    Client,
    ClientProgram,
    Exchange,
    Info,
    Named,
    Optimizer,
    Participation,
    Programs,
    Replies,
    Rule,
    Uplink,
)

BEFORE = "before"
"""Name of the parameters of the round before, among what is sent down and kept at the server."""


class Difference(NamedTuple):
    """Carry of a gradient difference: Σ over samples, and how many there were."""

    total: Tensor
    buffers: Named
    loss: Tensor
    seen: Tensor
    steps: Tensor


@declare(
    reference="Gorbunov, Horvath, Richtarik, Gidel 2023, 'Variance Reduction is an Antidote to Byzantines', arXiv"
    " 2206.00529, algorithm 1",
)
@dataclass(frozen=True)
class byz_vr_marina:
    """Full gradients now and then; in the other rounds the last aggregate and each client's change of gradient.

        c_k ~ Bernoulli(p), the same for all clients; c_0 = 1
        m_i = ∇f_i(x_k) if c_k = 1, else g_{k-1} + ∇f_i(x_k; B_i) - ∇f_i(x_{k-1}; B_i)
        g_k = rule(m_1 ... m_n),    x_{k+1} = x_k - γ g_k

    p: probability of a full gradient.
    γ is the server optimizer's step, sgd with lr. B_i is one batch of `batch_size` samples unless `steps` says more.
    In a round of differences the clients send the difference, which the server adds to g_{k-1}.

    Differences from the paper: the differences are compressed only where a section [compression] says so, as any
    strategy's are, and then the full gradients too. Clients' samples do not weigh. The paper's rule is any that is
    (δ, c)-robust, so choose one in [aggregator].
    """

    participation: Participation
    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=32, steps=1)
    p: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 0.1

    def programs(self, problem: Problem) -> Programs:
        return Programs(
            {"train": _alike(gradient(problem)), "difference": _difference(problem), "evaluate": evaluation(problem)},
            {},
        )

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem, own={BEFORE: problem.initial["params"]}, keep_previous=True)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        asked = _server.plan(self, problem, state, key, optimizer=None)
        if state.round == 0 or bool(keys.uniform(keys.fold(key, "coin"), 1)[0] < self.p):
            return asked._replace(batches=Batches(size=self.batches.size, shuffle=False))
        return asked._replace(program="difference", down={**asked.down, **state.own})

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        full = replies.exchange.program == "train"
        if not full:
            vectors = {**replies.vectors, "delta": replies.vectors["delta"] + state.previous}
            replies = replies._replace(vectors=vectors)
        new, info = _server.absorb(self, problem, state, replies, key)
        moved = "kept_model" not in info
        own = {BEFORE: state.model["params"]} if moved else state.own
        return new._replace(own=own), {**info, "full_gradient": full}

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model


def _alike(program: ClientProgram) -> ClientProgram:
    """The same program; its answer counts as much as any other."""

    def finish(client: Client, carry: Any) -> Uplink:
        return _server.uniform_weight(program.finish(client, carry))

    return program._replace(finish=finish)


def _difference(problem: Problem) -> ClientProgram:
    """`delta [d]` = -(∇f_i(x_k; B) - ∇f_i(x_{k-1}; B)), a direction of descent as all deltas are."""
    spec = problem.network.spec

    def start(client: Client) -> Difference:
        _, buffers = problem.unpack(client.down)
        zero = client.key.new_zeros((), dtype=problem.dtype)
        return Difference(torch.zeros_like(client.down["params"]), buffers, zero, zero, client.key.new_zeros(()))

    def step(client: Client, carry: Difference, batch: Batch) -> Difference:
        now, before = (spec.unflatten(client.down[name]) for name in ("params", BEFORE))
        grads, loss, buffers = sgd_step(problem, client, now, carry.buffers, batch, carry.steps)
        earlier, _, _ = sgd_step(problem, client, before, carry.buffers, batch, carry.steps)
        samples = batch["mask"].to(problem.dtype).sum()
        total = carry.total + (spec.flatten(grads) - spec.flatten(earlier)) * samples
        return Difference(total, buffers, carry.loss + loss.detach() * samples, carry.seen + samples, carry.steps + 1)

    def finish(client: Client, carry: Difference) -> Uplink:
        seen = carry.seen.clamp(min=1.0)
        vectors = {"delta": -carry.total / seen}
        if carry.buffers:
            vectors["buffers"] = problem.network.buffer_spec.flatten(carry.buffers)
        one = torch.ones_like(carry.seen)
        return Uplink(vectors, {"loss": carry.loss / seen, "steps": carry.steps}, {}, one)

    return ClientProgram(start, step, finish)
