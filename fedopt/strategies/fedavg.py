"""FedAvg: clients train, the server averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedopt.problem import Problem
from fedopt.programs import SHARED, evaluation, first_state, state_spec, training
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import Batches, Exchange, Info, Named, Optimizer, Participation, Programs, Replies, Rule


@declare(reference="McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, arXiv 1602.05629, Algorithm 1", private=True)
@dataclass(frozen=True)
class fedavg:
    """Federated averaging, with any local optimizer, aggregation rule and server optimizer.

    delta_i = LocalTraining(x_t; D_i) - x_t,  x_{t+1} = x_t + sum_{i in S_t} (n_i / n) delta_i

    weighting: a client counts by its samples n_i (the paper) or every client counts alike.
    optimizer_state: the local optimizer's state starts anew in each round (`reset`), stays with its client (`kept`), or
    is sent back with the delta, and the mean of the clients' goes to the next ones with the model (`averaged`): for
    moments, where a mean says something, and not for bases.

    Differences from the paper: the mean may be any rule, and x_t + delta may be any server optimizer's step along the
    pseudo-gradient -delta (Reddi et al. 2021, arXiv 2003.00295, Algorithm 1: FedAvgM, FedAdagrad, FedAdam, FedYogi).
    """

    participation: Participation
    aggregator: Rule
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)
    weighting: Literal["samples", "uniform"] = "samples"
    optimizer_state: Literal["reset", "kept", "averaged"] = "reset"

    def programs(self, problem: Problem) -> Programs:
        keep = self.optimizer_state == "kept"
        train = training(
            problem,
            self.optimizer,
            keep_state=keep,
            share_state=self.optimizer_state == "averaged",
            finish=lambda client, carry, uplink: (
                _server.uniform_weight(uplink) if self.weighting == "uniform" else uplink
            ),
        )
        work = {"train": train, "evaluate": evaluation(problem)}
        longest = state_spec(self.optimizer, problem).numel if self.optimizer_state == "averaged" else 0
        return Programs(work, _server.memory(self.optimizer, problem, keep), longest=longest)

    def init(self, problem: Problem, key: Tensor) -> Server:
        averaged = self.optimizer_state == "averaged"
        return _server.init(self, problem, {SHARED: first_state(self.optimizer, problem)} if averaged else None)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        return _server.plan(self, problem, state, key, optimizer=self.optimizer, down=state.own)

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        new, info = _server.absorb(self, problem, state, replies, key)
        if SHARED in state.own and "kept_model" not in info:
            new = new._replace(own={SHARED: _server.weighted_mean(replies.vectors[SHARED], replies.weights)})
        return new, info

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model
