"""Sign-SGD with a majority vote, and a step size from ALIAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import at_params, first_step
from fedopt.optimizers.alias import step_length
from fedopt.problem import Problem
from fedopt.programs import evaluation, sgd_step
from fedopt.registry import declare
from fedopt.schedules import Scalar, at
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
    Participation,
    Programs,
    Replies,
    Rule,
    State,
    Uplink,
)

NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Vote:
    """The server's step along the sign of what the rule made of the votes, as an optimizer."""

    lr: Scalar
    weight_decay: Scalar
    alias: bool
    option: str
    eta_0: float
    d_0: float
    f_low: float
    cold: float
    clamp: float | None

    def init(self, params: Named) -> dict[str, Tensor]:
        """`begun`, h, d, `seen`: what d of option I is made of, and the last γ."""
        zero = first_step(params)
        return {"begun": zero, "h": zero + self.eta_0, "d": zero + self.d_0, "seen": zero, "gamma": zero}

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, loss: Tensor, rise: Tensor, descent: Tensor
    ) -> tuple[Named, State]:
        """loss: of the model, the mean over clients; rise, descent: what h and d grow by."""
        numbers = at_params(hyper, params)
        h, d, seen, gamma = state["h"] + rise, state["d"], state["seen"] + descent, numbers["lr"]
        if self.alias:
            first = (loss - self.f_low).clamp(min=0.0)
            d = torch.maximum(d, seen) if self.option == "I" else torch.where(state["begun"] > 0, d, first)
            gamma = step_length(d, h, gamma, self.cold, self.clamp)
        kept = 1.0 - gamma * numbers["weight_decay"]
        new = {name: kept * x - gamma * grads[name].sign() for name, x in params.items()}
        return new, {"begun": torch.ones_like(h), "h": h, "d": d, "seen": seen, "gamma": gamma}


class Slopes(NamedTuple):
    """Carry: sums over samples of the gradient here, and where the client was before."""

    here: Named
    before: Named
    buffers: Named
    loss: Tensor
    seen: Tensor
    steps: Tensor


@declare(
    reference="Bernstein, Zhao, Azizzadenesheli, Anandkumar 2019, signSGD with Majority Vote; Medyakov et al. 2025, "
    "Sign-SGD via Parameter-Free Optimization, arXiv 2506.03725 (majority vote, and ALIAS)",
    exceptions={"one client": "steps are signs"},
)
@dataclass(frozen=True)
class sign_sgd:
    """x ← (1 - γ_t λ) x - γ_t sign(Σ_j sign(g_j,t)), with γ_t given or found.

    alias: h_t = h_(t-1) + mean_j ‖g_j(x_t) - g_j(x_s)‖₁ / ‖x_t - x_s‖_∞,  γ_t = lr √(d_t / h_t), where x_s is the last
    model that client j was sent, x_(t-1) if it takes part in every round. Both gradients are of the same samples.
    d_t as in the optimizer `alias`: option II from the first losses; option I from what clients have descended since,
    mean_j ⟨g_j(x_t), x_s - x_t⟩ / (t - s), summed over rounds.

    Up go signs and two numbers; [compression] makes the signs bits: `sign` with scale = "one" takes 1 bit an entry, and
    makes 0 a vote for +1; `terngrad` keeps zeros, in up to 2 bits. With [compression.down] as one of these the way down
    takes as little, since the model moves by γ or not at all.

    rate: `alias`, or `given` by lr. lr: γ, or a factor of it. momentum: clients vote by the sign of
    m ← β m + (1 - β) g (Signum), 0 for none. weight_decay: λ. exchange: `norms`: clients send the norms of their
    changes, whose mean is an upper bound of the norm of the mean change; `full`: they send the changes themselves, for
    the norm of their mean. option, eta_0, d_0, f_low, cold, clamp: as in `alias`.

    An entry on whose side as many are as on the other does not move. Any aggregation rule over the signs is allowed;
    the sign of its result counts, so the mean is the majority vote.

    *Differences from the papers*: how nodes agree on γ was not available; h and d are reconstructions.
    """

    participation: Participation
    aggregator: Rule
    batches: Batches = Batches(size=32, steps=1)
    rate: Literal["alias", "given"] = "alias"
    lr: Scalar = 1.0
    momentum: Scalar = 0.0
    weight_decay: Scalar = 0.0
    exchange: Literal["norms", "full"] = "norms"
    option: Literal["I", "II"] = "II"
    eta_0: NotNegative = 100.0
    d_0: Positive = 1e-6
    f_low: float = 0.0
    cold: Positive = 1e-3
    clamp: Positive | None = None

    @property
    def server(self) -> Any:
        """The server's step, an optimizer."""
        return Vote(
            lr=self.lr,
            weight_decay=self.weight_decay,
            alias=self.rate == "alias",
            option=self.option,
            eta_0=self.eta_0,
            d_0=self.d_0,
            f_low=self.f_low,
            cold=self.cold,
            clamp=self.clamp,
        )

    def programs(self, problem: Problem) -> Programs:
        memory: Named = {}
        if self.rate == "alias":
            memory |= {"before": problem.initial["params"], "sent": torch.tensor(-1)}
        if self.momentum != 0:
            memory["m"] = torch.zeros(problem.d, dtype=problem.dtype)
        return Programs({"train": self._voting(problem), "evaluate": evaluation(problem)}, memory)

    def init(self, problem: Problem, key: Tensor) -> Server:
        return _server.init(self, problem)

    def plan(self, problem: Problem, state: Server, key: Tensor) -> Exchange:
        down = {"round": torch.tensor(state.round)}
        if self.momentum != 0:
            down["momentum"] = torch.tensor(at(self.momentum, state.round), dtype=problem.dtype)
        return _server.plan(self, problem, state, key, optimizer=None, down=down)

    def absorb(self, problem: Problem, state: Server, replies: Replies, key: Tensor) -> tuple[Server, Info]:
        def heard() -> dict[str, Any]:
            said, zero = replies.metrics, torch.zeros((), dtype=problem.dtype)
            if self.rate == "given":
                return {"loss": said["loss"].mean(), "rise": zero, "descent": zero}
            known = said["known"] / said["known"].sum().clamp(min=1.0)
            rise = (known * said["rise"]).sum()
            if self.exchange == "full":  # the mean over all who answered, brought to those who had a model before
                share = said["known"].mean()
                change = _server.weighted_mean(replies.vectors["change"], replies.weights)
                rise = change.abs().sum() / share if share > 0 else zero
            return {"loss": said["loss"].mean(), "rise": rise, "descent": (known * said["descent"]).sum()}

        new, info = _server.absorb(self, problem, state, replies, key, offers=heard)
        numbers = {"step_size": float(new.optimizer["gamma"])}
        if self.rate == "alias":
            numbers |= {"smoothness": float(new.optimizer["h"]), "distance": float(new.optimizer["d"])}
        return new, {**info, **numbers}

    def model(self, problem: Problem, state: Server) -> Named:
        return state.model

    def _voting(self, problem: Problem) -> ClientProgram:
        """`delta [d]` = -sign of the mean gradient over the batches, or of its running mean."""
        spec, alias = problem.network.spec, self.rate == "alias"

        def start(client: Client) -> Slopes:
            params, buffers = problem.unpack(client.down)
            zero = client.key.new_zeros((), dtype=problem.dtype)
            zeros = {name: torch.zeros_like(x) for name, x in params.items()}
            return Slopes(zeros, zeros if alias else {}, buffers, zero, zero, client.key.new_zeros(()))

        def step(client: Client, carry: Slopes, batch: Batch) -> Slopes:
            params, _ = problem.unpack(client.down)
            samples = batch["mask"].to(problem.dtype).sum()
            grads, loss, buffers = sgd_step(problem, client, params, carry.buffers, batch, carry.steps)
            here = {name: t + grads[name] * samples for name, t in carry.here.items()}
            before = carry.before
            if alias:
                old = spec.unflatten(client.memory["before"])
                earlier, _, _ = sgd_step(problem, client, old, carry.buffers, batch, carry.steps)
                before = {name: t + earlier[name] * samples for name, t in before.items()}
            loss = carry.loss + loss.detach() * samples
            return Slopes(here, before, buffers, loss, carry.seen + samples, carry.steps + 1)

        def finish(client: Client, carry: Slopes) -> Uplink:
            seen, x = carry.seen.clamp(min=1.0), client.down["params"]
            g, memory = spec.flatten(carry.here) / seen, {}
            voted = g
            if self.momentum != 0:
                beta = client.down["momentum"]
                voted = beta * client.memory["m"] + (1.0 - beta) * g
                memory["m"] = voted
            vectors = {"delta": -voted.sign()}
            metrics = {"loss": carry.loss / seen, "steps": carry.steps}
            if carry.buffers:
                vectors["buffers"] = problem.network.buffer_spec.flatten(carry.buffers)
            if alias:
                change = g - spec.flatten(carry.before) / seen
                moved = client.memory["before"] - x
                length = moved.abs().amax()
                known = (client.memory["sent"] >= 0) & (length > 0)
                change = torch.where(known, change / torch.where(known, length, torch.ones_like(length)), 0.0 * g)
                age = (client.down["round"] - client.memory["sent"]).clamp(min=1).to(x.dtype)
                metrics |= {
                    "known": known.to(x.dtype),
                    "rise": change.abs().sum(),
                    "descent": torch.where(known, (g * moved).sum() / age, 0.0 * length),
                }
                if self.exchange == "full":
                    vectors["change"] = change
                memory |= {"before": x, "sent": client.down["round"]}
            return Uplink(vectors, metrics, memory, torch.ones_like(seen))

        return ClientProgram(start, step, finish)
