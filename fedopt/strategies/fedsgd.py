"""FedSGD: clients send the gradient of their whole data, the server steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedopt.problem import Problem
from fedopt.programs import evaluation, gradient
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import Batches, Exchange, Info, Named, Optimizer, Participation, Programs, Replies, Rule


@declare(reference="McMahan et al. 2017, arXiv 1602.05629, section 2 (FederatedSGD)", private=True)
@dataclass(frozen=True)
class fedsgd:
    """One full local gradient per round; the server optimizer takes the step.

    g_i = ∇ f_i(x_t),  x_{t+1} = server step along sum_{i in S_t} (n_i / n) g_i; plain descent with server sgd and lr η.

    There is no local optimizer. `batch_size` only bounds memory: the gradient is that of all of a client's data, unless
    `steps` asks for so many batches of it (mini-batch gradients).
    """

    participation: Participation
    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)

    def programs(self, problem: Problem) -> Programs:
        return Programs({"train": gradient(problem), "evaluate": evaluation(problem)}, {})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        return _server.plan(self, problem, state, key, optimizer=None)

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        return _server.absorb(self, problem, state, replies, key)

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model
