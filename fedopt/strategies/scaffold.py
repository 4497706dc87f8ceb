"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.problem import Problem
from fedopt.programs import Training, evaluation, training
from fedopt.registry import declare
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


@declare(reference="Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, arXiv 1910.06378, Algorithm 1, option II")
@dataclass(frozen=True)
class scaffold:
    """Local steps along g_i(y) - c_i + c, where c_i tracks client i's gradient and c the average of all.

    y <- y - η_l (g_i(y) - c_i + c), K times;  c_i⁺ = c_i - c + (x - y) / (K η_l);
    x <- x + (η_g / |S|) sum_{i in S} (y_i - x);  c <- c + (1 / N) sum_{i in S} (c_i⁺ - c_i).

    c_i stays in the client's memory (zero at first); `delta = y_i - x` and `control = c_i⁺ - c_i` go up. η_g is the
    server optimizer's step (sgd with lr 1 by default).

    Differences from the paper: with plain SGD, (x - y) / (K η_l) is the mean of the corrected gradients, so c_i⁺ is
    the mean of the raw gradients g_i(y) along the path; that mean is what is computed, so the control variate keeps
    its meaning for every local optimizer and schedule. Option I (a gradient at x) is not offered. The rule aggregates
    delta; control is averaged plainly.
    """

    participation: Participation
    aggregator: Rule
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)

    def programs(self, problem: Problem) -> Programs:
        spec = problem.network.spec

        def correct(client: Client, params: Named, grads: Named) -> Named:
            shift = spec.unflatten(client.down["control"] - client.memory["control"])
            return {name: g + shift[name] for name, g in grads.items()}

        def along(client: Client, carry: Training, grads: Named, batch: Batch) -> Named:
            return {"gradients": carry.extra["gradients"] + spec.flatten(grads)}

        def finish(client: Client, carry: Training, uplink: Uplink) -> Uplink:
            control = carry.extra["gradients"] / carry.steps.clamp(min=1)
            change = control - client.memory["control"]
            return _server.uniform_weight(uplink)._replace(
                vectors={**uplink.vectors, "control": change}, memory={"control": control}
            )

        train = training(
            problem,
            self.optimizer,
            correct=correct,
            extra=lambda client: {"gradients": torch.zeros_like(client.down["control"])},
            along=along,
            finish=finish,
        )
        return Programs({"train": train, "evaluate": evaluation(problem)}, {"control": self._zero(problem)})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem, own={"control": self._zero(problem)})

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        return _server.plan(self, problem, state, key, optimizer=self.optimizer, down=state.own)

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        new, info = _server.absorb(self, problem, state, replies, key)
        answered = replies.clients.numel()
        if answered:
            change = _server.weighted_mean(replies.vectors["control"], replies.weights)
            new = new._replace(own={"control": state.own["control"] + change * (answered / problem.clients)})
        return new, info

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model

    @staticmethod
    def _zero(problem: Problem) -> Tensor:
        return torch.zeros(problem.d, dtype=problem.dtype)
