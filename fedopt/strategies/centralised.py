"""The baseline with all data in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt.optimizers import hyper_parameters
from fedopt.problem import Problem
from fedopt.programs import HYPER, evaluation, training
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.types import Batches, Exchange, Info, Named, Optimizer, Programs, Replies


class Pooled(NamedTuple):
    """State: the model."""

    round: int
    model: Named


@declare(reference="stochastic descent on the union of all clients' data", pooled=True)
@dataclass(frozen=True)
class centralised:
    """x_{t+1} = LocalTraining(x_t; union of all D_i): what training without a federation reaches.

    The clients' data are pooled into one client, so one round is `epochs` passes over everything.

    optimizer_state: `kept` is one long training; `reset` starts the optimizer anew in each round.
    """

    optimizer: Optimizer
    batches: Batches = Batches(size=32)
    optimizer_state: Literal["reset", "kept"] = "kept"

    def programs(self, problem: Problem) -> Programs:
        keep = self.optimizer_state == "kept"
        train = training(problem, self.optimizer, keep_state=keep)
        return Programs(
            {"train": train, "evaluate": evaluation(problem)}, _server.memory(self.optimizer, problem, keep)
        )

    def init(self, problem: Problem, key: Tensor) -> Pooled:
        return Pooled(0, dict(problem.initial))

    def plan(self, problem: Problem, state: Pooled, key: Tensor) -> Exchange:
        numbers = hyper_parameters(self.optimizer, state.round, problem.dtype)
        down = {**state.model, **{HYPER + name: value for name, value in numbers.items()}}
        return Exchange("train", torch.zeros(1, dtype=torch.int64), down, batches=self.batches)

    def absorb(self, problem: Problem, state: Pooled, replies: Replies, key: Tensor) -> tuple[Pooled, Info]:
        if replies.clients.numel() == 0:
            return state._replace(round=state.round + 1), {"kept_model": "no answer was accepted"}
        model = {"params": state.model["params"] + replies.vectors["delta"][0]}
        if "buffers" in replies.vectors:
            model["buffers"] = replies.vectors["buffers"][0]
        return Pooled(state.round + 1, model), {}

    def model(self, problem: Problem, state: Pooled) -> Named:
        return state.model
