"""RECESS: the server sends each client its own direction back and looks how it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import aggregators
from fedopt.problem import Problem
from fedopt.programs import evaluation, training
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import Batches, Client, Exchange, Info, Named, Optimizer, Participation, Programs, Replies, Rule


class Probing(NamedTuple):
    """State: what the server has, trust by client, and between the two exchanges of a round the directions."""

    round: int
    server: Server
    trust: Tensor
    """TS `[N]`, float64."""
    clients: Tensor
    """Who answered the first exchange `[n]`; nobody between rounds."""
    directions: Tensor
    """d_i `[n, d]`."""


@declare(
    reference="Yan, Wang, Yuan, Zeng 2023, 'RECESS Vaccine for Federated Learning: Proactive Defense Against Model"
    " Poisoning Attacks', arXiv 2310.05431, algorithm 1",
    exceptions={"one client": "what moves the model is trained from a point ahead of it"},
)
@dataclass(frozen=True)
class recess:
    """Two trainings per round; a client whose second answer turns away from its first one loses trust.

        d_i = Δ_i / ‖Δ_i‖,    Δ'_i = LocalTraining(x + d_i; D_i) - (x + d_i)
        a_i = -cos(d_i, Δ'_i) / ‖Δ'_i‖,    TS_i <- TS_i - decrease · a_i,    TS = 1 at first
        w = softmax(TS over the clients of the round),    x <- x + Σ w_i Δ'_i

    A round is two exchanges, `train` and `probe`, with the same clients; it is over after the second one.

    decrease: how much an abnormality costs.
    accumulate: trust goes on from round to round; otherwise it starts at 1 in each.

    Differences from the paper: its score also falls by a constant for each abnormal answer and a client is put out at
    0; here the abnormality itself is taken off, and clients fade through the softmax. `accumulate = false` is the form
    that BANT is compared with (arXiv 2505.07614).
    """

    participation: Participation
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)
    decrease: Annotated[float, pydantic.Field(gt=0.0)] = 0.1
    accumulate: bool = True

    @property
    def aggregator(self) -> Rule:
        """The mean by trust."""
        return aggregators.build("mean", {})

    def programs(self, problem: Problem) -> Programs:
        def ahead(client: Client) -> Named:
            return {**client.down, "params": client.down["params"] + client.own["direction"]}

        work = {
            "train": training(problem, self.optimizer),
            "probe": training(problem, self.optimizer, model_of=ahead),
            "evaluate": evaluation(problem),
        }
        return Programs(work, {})

    def init(self, problem: Problem, key: Tensor) -> Probing:
        trust = torch.ones(problem.clients, dtype=torch.float64)
        return self._between(problem, Probing(0, _server.init(self, problem), trust, trust[:0].long(), trust[:0]))

    def plan(self, problem: Problem, state: Probing, key: Tensor) -> Exchange:
        asked = _server.plan(self, problem, state.server, key, optimizer=self.optimizer)._replace(reduce="rows")
        if state.clients.numel() == 0:
            return asked
        return asked._replace(program="probe", clients=state.clients, own={"direction": state.directions})

    def absorb(self, problem: Problem, state: Probing, replies: Replies, key: Tensor) -> tuple[Probing, Info]:
        rows = replies.vectors["delta"]
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        if state.clients.numel() == 0 and replies.clients.numel() > 0:
            directions = (rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)[:, None]).to(rows.dtype)
            return state._replace(clients=replies.clients, directions=directions), {}
        trust = state.trust if self.accumulate else torch.ones_like(state.trust)
        first = state.directions[torch.isin(state.clients, replies.clients)]
        cosine = (
            torch.cosine_similarity(first.to(torch.float64), rows.to(torch.float64), dim=1) if len(first) else norms
        )
        abnormal = -cosine / norms.clamp(min=torch.finfo(torch.float64).tiny)
        trust = trust.index_add(0, replies.clients, -self.decrease * abnormal)
        weights = torch.softmax(trust[replies.clients], dim=0)
        server, info = _server.absorb(
            self, problem, state.server, replies._replace(weights=weights.to(rows.dtype)), key
        )
        told = dict(zip(map(str, replies.clients.tolist()), weights.tolist(), strict=True))
        after = state._replace(round=server.round, server=server, trust=trust)
        return self._between(problem, after), {**info, "trust": told}

    def model(self, problem: Problem, state: Probing) -> Named:
        return state.server.model

    @staticmethod
    def _between(problem: Problem, state: Probing) -> Probing:
        nobody = torch.zeros(0, dtype=torch.int64)
        return state._replace(clients=nobody, directions=torch.zeros(0, problem.d, dtype=problem.dtype))
