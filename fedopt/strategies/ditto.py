"""Ditto: a global model by FedAvg, and for every client a personal one that stays near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedopt.optimizers import Grouped, advance
from fedopt.problem import Problem
from fedopt.programs import Training, by_class, evaluation, grouped_step, hyper, sgd_step, training
from fedopt.registry import declare
from fedopt.schedules import Scalar, at
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import (
    Batch,
    Batches,
    Client,
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


@declare(reference="Li, Hu, Beirami, Smith 2021, arXiv 2012.04221, Algorithm 1", private=True)
@dataclass(frozen=True)
class ditto:
    """Global: FedAvg. Personal: v_i <- v_i - η (∇ f_i(v_i) + λ (v_i - x_t)), kept by client i and never sent.

    The personal model takes one step on every batch that the global model takes one on, with the same optimizer
    (its state starts anew each round). Clients evaluate their personal model. Buffers are those of the common model.

    lam: λ >= 0, may follow a schedule; 0 is purely local training, a large λ gives the global model.

    Differences from the paper: the personal steps share the batches of the global ones, so s equals the local steps.
    """

    participation: Participation
    aggregator: Rule
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)
    lam: Scalar = 1.0

    def programs(self, problem: Problem) -> Programs:
        spec, groups = problem.network.spec, by_class(problem, self.optimizer)

        def extra(client: Client) -> Any:
            params = spec.unflatten(client.memory["personal"])
            return {"personal": params, "state": self.optimizer.init(params)}

        def along(client: Client, carry: Training, grads: Named, batch: Batch) -> Any:
            params = carry.extra["personal"]
            centre, _ = problem.unpack(client.down)

            def oracle(point: Named) -> tuple[Named, Tensor]:
                own, loss, _ = sgd_step(problem, client, point, carry.buffers, batch, carry.steps)
                return {name: g + client.down["lam"] * (point[name] - centre[name]) for name, g in own.items()}, loss

            def weighted(point: Named, weights: Callable[[Tensor], Tensor]) -> Grouped:
                found, _ = grouped_step(problem, client, point, carry.buffers, batch, carry.steps, weights, groups)
                pull = {name: g + client.down["lam"] * (point[name] - centre[name]) for name, g in found.grads.items()}
                return found._replace(grads=pull)

            params, state, _, _ = advance(
                self.optimizer,
                oracle,
                carry.extra["state"],
                params,
                hyper(client.down),
                weighted if groups else None,
            )
            return {"personal": params, "state": state}

        def finish(client: Client, carry: Training, uplink: Uplink) -> Uplink:
            return uplink._replace(memory={"personal": spec.flatten(carry.extra["personal"])})

        train = training(problem, self.optimizer, extra=extra, along=along, finish=finish)
        personal = evaluation(problem, lambda client: {**client.down, "params": client.memory["personal"]})
        return Programs({"train": train, "evaluate": personal}, {"personal": problem.initial["params"]})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        lam = torch.tensor(at(self.lam, state.round), dtype=problem.dtype)
        return _server.plan(self, problem, state, key, optimizer=self.optimizer, down={"lam": lam})

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        return _server.absorb(self, problem, state, replies, key)

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model
