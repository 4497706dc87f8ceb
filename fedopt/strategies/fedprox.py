"""FedProx: local training with a proximal pull towards the server's model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.problem import Problem
from fedopt.programs import Correction, evaluation, training
from fedopt.registry import declare
from fedopt.schedules import Scalar, at
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import Batches, Client, Exchange, Info, Named, Optimizer, Participation, Programs, Replies, Rule


@declare(reference="Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, arXiv 1812.06127, Algorithm 2", private=True)
@dataclass(frozen=True)
class fedprox:
    """FedAvg whose clients minimise h_i(w) = f_i(w) + (μ/2) ||w - x_t||².

    The local gradient becomes ∇ f_i(w) + μ (w - x_t).

    mu: μ >= 0, may follow a schedule; 0 is FedAvg.

    Differences from the paper: clients are weighted by samples under uniform sampling (as in FedAvg) where Algorithm 2
    samples by p_k and averages alike; the γ-inexactness of the local solution follows from epochs, not from a test.
    """

    participation: Participation
    aggregator: Rule
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)
    mu: Scalar = 0.01

    def programs(self, problem: Problem) -> Programs:
        train = training(problem, self.optimizer, correct=pull(problem))
        return Programs({"train": train, "evaluate": evaluation(problem)}, {})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        mu = torch.tensor(at(self.mu, state.round), dtype=problem.dtype)
        return _server.plan(self, problem, state, key, optimizer=self.optimizer, down={"mu": mu})

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        return _server.absorb(self, problem, state, replies, key)

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model


def pull(problem: Problem) -> Correction:
    """The correction grads + μ (params - x_t)."""

    def correct(client: Client, params: Named, grads: Named) -> Named:
        centre, _ = problem.unpack(client.down)
        return {name: g + client.down["mu"] * (params[name] - centre[name]) for name, g in grads.items()}

    return correct
