"""ALSO over a federation: the server weights clients, or classes, against the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import hyper_parameters
from fedopt.optimizers.also import Positive, Weights, inverse_frequency
from fedopt.optimizers.also import also as weighting
from fedopt.problem import Problem
from fedopt.programs import Gradient, evaluation, gradient, grouped_step
from fedopt.registry import ConfigError, declare
from fedopt.schedules import Scalar
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


class Classes(NamedTuple):
    """Carry of a gradient whose samples are weighted by class."""

    gradient: Gradient
    losses: Tensor
    """Sums by class `[c]`."""


@declare(
    reference="Feoktistov et al. 2025, Aligning Distributionally Robust Optimization with Practical Deep Learning "
    "Needs, arXiv 2508.16734 (ALSO with groups of samples at workers)",
    exceptions={"one client": ("gradients are taken ahead of the model", {"mode": "optimistic"})},
)
@dataclass(frozen=True)
class also:
    """Clients send gradients of weighted losses and the losses of groups; the server steps, and turns the weights.

        down: x' and π'_j of the client, or π' of the classes;   up: ∇ of its weighted mean loss, and the groups' losses
        g_t = c Σ_j (B_j / B) ∇ (1/B_j) Σ_i π'_(g(i)) l_i(x'),   h_t = (c / B) Σ_i l_i by group, 0 for who is absent

    and then as the optimizer `also`, whose steps are those of [strategy.server] (Adam in the paper). B_j are the
    samples that client j answers for in this exchange, B = Σ_j B_j. Under uniform sampling h is right in the mean.

    groups: `clients`: a weight for each client; `classes`: for each class of the samples.
    prior: `uniform`, `inverse_frequency` (of the clients' samples; for classes their shares are the weights to give),
    or a weight for each group. The other options are those of the optimizer `also`.

    *Differences from the paper*: its distributed code is unpublished; this form is a reconstruction. An aggregation
    rule other than the mean acts on the weighted gradients.
    """

    participation: Participation
    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=32, steps=1)
    groups: Literal["clients", "classes"] = "clients"
    mode: Literal["optimistic", "descent_ascent"] = "optimistic"
    alpha: float = 1.0
    lookahead: Literal["advance", "peek"] = "advance"
    pi_lr: Scalar = 1e-3
    pi_decay: Scalar = 1e-2
    prior: Literal["uniform", "inverse_frequency"] | Weights = "uniform"
    pi_update: Literal["exponentiated", "projected"] = "exponentiated"
    cap: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    temperature: Positive = 1.0

    def programs(self, problem: Problem) -> Programs:
        train = self._of_client(problem) if self.groups == "clients" else self._of_classes(problem)
        return Programs({"train": train, "evaluate": evaluation(problem)}, {})

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem, server=self.weighting(problem))

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        exchange = _server.plan(self, problem, state, key, optimizer=None)
        optimizer = self.weighting(problem)
        numbers = hyper_parameters(optimizer, state.round, problem.dtype)
        params, _ = problem.unpack(state.model)
        point = problem.network.spec.flatten(optimizer.ahead(state.optimizer, params, numbers))
        count = torch.tensor(float(optimizer.groups), dtype=problem.dtype)  # a scale of 1
        weights = optimizer.weights(state.optimizer, numbers, count)
        down = {**exchange.down, "params": point}
        if self.groups == "classes":
            return exchange._replace(down={**down, "weights": weights})
        return exchange._replace(down=down, own={**exchange.own, "weight": weights[exchange.clients]})

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        optimizer = self.weighting(problem)

        def heard() -> dict[str, Any]:
            seen = replies.metrics["seen"]
            if self.groups == "classes":
                losses = _server.weighted_mean(replies.vectors["losses"], replies.weights)
                return {"group_loss": losses, "count": torch.ones_like(losses[0])}
            losses = torch.zeros(problem.clients, dtype=problem.dtype)
            losses = losses.index_add(0, replies.clients, seen * replies.metrics["loss"])
            return {"group_loss": losses, "count": seen.sum()}

        new, info = _server.absorb(
            self, problem, state, replies, key, scale=float(optimizer.groups), server=optimizer, offers=heard
        )
        pi = new.optimizer["log_pi"].exp()
        return new, {**info, "largest_weight": float(pi.max()), "smallest_weight": float(pi.min())}

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model

    def weighting(self, problem: Problem) -> Any:
        """The optimizer `also` with the groups of this problem. Raises ConfigError where a prior does not fit them."""
        of_clients = self.groups == "clients"
        groups = problem.clients if of_clients else problem.data.classes
        prior: tuple[float, ...] | None = None if isinstance(self.prior, str) else self.prior
        if self.prior == "inverse_frequency":
            if not of_clients:
                raise ConfigError(
                    "strategy.prior",
                    "how frequent classes are is not told to the server; give a weight for each of them in their place",
                )
            prior = inverse_frequency(problem.data.splits["train"].sizes.tolist())
        try:
            return weighting(
                groups=groups,
                of=self.server,
                mode=self.mode,
                alpha=self.alpha,
                lookahead=self.lookahead,
                pi_lr=self.pi_lr,
                pi_decay=self.pi_decay,
                prior=prior,
                pi_update=self.pi_update,
                cap=self.cap,
                temperature=self.temperature,
            )
        except ValueError as error:
            raise ConfigError("strategy", str(error)) from None

    def _of_client(self, problem: Problem) -> ClientProgram:
        """The gradient of the client's mean loss, times its weight."""
        plain = gradient(problem)

        def finish(client: Client, carry: Gradient) -> Uplink:
            uplink = plain.finish(client, carry)
            # data of the server itself, for rules with a reference, belong to nobody: the mean of all weights
            delta = client.own.get("weight", 1.0 / problem.clients) * uplink.vectors["delta"]
            return uplink._replace(
                vectors={**uplink.vectors, "delta": delta},
                metrics={**uplink.metrics, "seen": carry.seen},
                weight=carry.seen,
            )

        return plain._replace(finish=finish)

    def _of_classes(self, problem: Problem) -> ClientProgram:
        """The gradient of the client's mean loss, samples weighted by class, and the losses of classes in that mean."""
        data = problem.data
        if data.task != "classification" or data.splits["train"].y.dim() != 1:
            raise ConfigError("strategy.groups", "a sample has no class in these data; 'clients' is needed")
        plain = gradient(problem)

        def start(client: Client) -> Classes:
            carry = plain.start(client)
            return Classes(carry, torch.zeros_like(client.down["weights"]))

        def step(client: Client, carry: Classes, batch: Batch) -> Classes:
            params, _ = problem.unpack(client.down)
            old = carry.gradient
            found, buffers = grouped_step(
                problem, client, params, old.buffers, batch, old.steps,
                lambda count: client.down["weights"], data.classes,
            )  # fmt: skip
            total = {name: t + found.grads[name] for name, t in old.total.items()}
            seen = old.seen + found.samples
            loss = old.loss + found.value * found.samples
            return Classes(Gradient(total, buffers, loss, seen, old.steps + 1), carry.losses + found.losses)

        def finish(client: Client, carry: Classes) -> Uplink:
            uplink, seen = plain.finish(client, carry.gradient), carry.gradient.seen
            vectors = {**uplink.vectors, "losses": carry.losses / seen.clamp(min=1.0)}
            return uplink._replace(vectors=vectors, metrics={**uplink.metrics, "seen": seen}, weight=seen)

        return ClientProgram(start, step, finish)
