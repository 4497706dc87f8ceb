"""FedNova: normalised averaging of clients that take unequal numbers of local steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.problem import Problem
from fedopt.programs import Training, evaluation, hyper, training
from fedopt.registry import declare
from fedopt.strategies import _server
from fedopt.strategies._server import Server
from fedopt.types import (
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


@declare(reference="Wang, Liu, Liang, Joshi, Poor 2020, arXiv 2007.07481, eq. 6 and section 4")
@dataclass(frozen=True)
class fednova:
    """x_{t+1} = x_t + τ_eff sum_i p_i delta_i / a_i,  τ_eff = sum_i p_i a_i,  p_i = n_i / n over the cohort.

    a_i = ||a_i||_1 is the weight that the local optimizer gives to its gradients: τ_i steps of SGD give a_i = τ_i; with
    momentum ρ and k_i = (1 - ρ^τ_i) / (1 - ρ), a_i = (τ_i - ρ k_i) / (1 - ρ). Dampening δ turns a_i into
    (1 - δ) a_i + δ k_i, and Nesterov's form then into τ_i + ρ a_i. They are read from the local optimizer's
    `momentum`, `dampening` and `nesterov`; for optimizers without them a_i = τ_i.

    Up: `delta` = delta_i / a_i, and `steps` = a_i as a vector of one entry.

    Differences from the paper: p_i is renormalised over the cohort; the rule aggregates the normalised deltas, τ_eff is
    a weighted mean; the paper has no dampening and no Nesterov momentum.
    """

    participation: Participation
    aggregator: Rule
    optimizer: Optimizer
    server: Optimizer
    batches: Batches = Batches(size=32)

    def programs(self, problem: Problem) -> Programs:
        def finish(client: Client, carry: Training, uplink: Uplink) -> Uplink:
            a = gradients_weight(self.optimizer, hyper(client.down), carry.steps.to(problem.dtype))
            vectors = {**uplink.vectors, "delta": uplink.vectors["delta"] / a.clamp(min=1.0), "steps": a.reshape(1)}
            return uplink._replace(vectors=vectors)

        train = training(problem, self.optimizer, finish=finish)
        return Programs({"train": train, "evaluate": evaluation(problem)}, {})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        return _server.plan(self, problem, state, key, optimizer=self.optimizer)

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        if replies.clients.numel() == 0:
            return _server.absorb(self, problem, state, replies, key)
        steps = _server.weighted_mean(replies.vectors["steps"], replies.weights)[0]
        new, info = _server.absorb(self, problem, state, replies, key, scale=steps)
        return new, {**info, "effective_steps": float(steps)}

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model


def gradients_weight(optimizer: Optimizer, numbers: Named, tau: Tensor) -> Tensor:
    """a = ||a||_1, the sum of the factors with which `tau` gradients enter the way of an optimizer with lr 1."""
    if getattr(optimizer, "momentum", 0) == 0:
        return tau
    rho, zero = numbers["momentum"].to(tau.dtype), torch.zeros_like(tau)
    damp = numbers.get("dampening", zero).to(tau.dtype)
    kept = (1.0 - rho**tau) / (1.0 - rho)
    a = (1.0 - damp) * (tau - rho * kept) / (1.0 - rho) + damp * kept
    return tau + rho * a if getattr(optimizer, "nesterov", False) else a
