"""Gradient descent and accelerated gradient descent on vertically split data, in the minimisation form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.registry import ConfigError, declare
from fedopt.strategies import _parties
from fedopt.strategies._parties import Absent, Count, NotNegative, Positive, Power, Presence
from fedopt.types import Client, Codec, Coded, Exchange, Info, Named, Programs, Replies
from fedopt.vfl.blocks import block
from fedopt.vfl.owner import Owner, owner
from fedopt.vfl.penalties import Penalty

TELL, POWER, MOVE = range(3)


class Descent(NamedTuple):
    """State: the parties' outputs at the point where the next gradient is taken, and the step."""

    round: int
    phase: int
    a: Tensor
    """Σ_i g_i `[m c]`"""
    step: float
    since: int
    """Iterations since the momentum began."""
    power: Power
    presence: Presence


@declare(
    reference="Nesterov 2018, 'Lectures on Convex Optimization', section 2.2; Beck and Teboulle 2009 (FISTA)",
    vertical=True,
    vectors=("moved",),
)
@dataclass(frozen=True)
class vertical_gd:
    """Descent on f(x) = l(k A x) + r(x), l and k as for `egvfl`: what a saddle form has to be compared with.

        v_i = x_i + β (x_i - x_i');   x_i <- prox(v_i - γ (k A_iᵀ ∇l(k A v) + ∇r(v_i)))

    One exchange per iteration: ∇l(k A v) goes down, A_i v_i comes up. γ = safety / L, L = k² λ_max(AᵀA) L_l + l2, with
    λ_max from a power iteration over the parties, or `step`.

    acceleration: `none`, β = 0; `nesterov`, β = (√L - √l2) / (√L + √l2) where l2 > 0, else t / (t + 3).

    What is compressed on the way ([compression], [compression.down]) enters through ∇l and is not unbiased any more, so
    compressed descent stalls at a distance from the solution; `egvfl_reference` does not.

    loss, l2, l1, normalise, step, absent, patience: as for `egvfl`.
    """

    broadcast: Codec | None = None
    loss: Literal["squares", "logistic", "softmax", "huber"] = "squares"
    l2: NotNegative = 1e-3
    l1: NotNegative = 0.0
    acceleration: Literal["none", "nesterov"] = "none"
    step: Positive | None = None
    safety: Positive = 1.0
    normalise: bool = True
    absent: Absent = "wait"
    patience: Count = 5

    def lengths(self, problem: Problem) -> dict[str, int]:
        """Of the vectors that are compressed."""
        return {"moved": self._owner(problem).targets.numel()}

    def programs(self, problem: Problem) -> Programs:
        mine, penalty = block(problem), Penalty(self.l2, self.l1)
        targets, weights = self._owner(problem).targets, problem.initial["params"]

        def move(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
            point, gamma = client.memory["point"], client.down["step"]
            force = client.down["coupling"] * mine.pull(point, x, client.down["gradient"]) + penalty.gradient(point)
            after = penalty.prox(point - gamma * force, gamma)
            ahead = after + client.down["momentum"] * (after - client.memory[_parties.STARTED])
            told = {"penalty": penalty.value(ahead)}
            return {"moved": mine.forward(ahead, x)}, {_parties.STARTED: after, "point": ahead}, told

        work = {
            "power": _parties.powering(mine, targets.numel()),
            "move": _parties.answering(move, self.lengths(problem), (_parties.STARTED, "point"), ("penalty",)),
            **_parties.telling(problem, mine, penalty, targets.shape[1]),
        }
        return Programs(
            work, {_parties.STARTED: weights, "point": weights}, longest=_parties.longest(problem, targets.shape[1])
        )

    def init(self, problem: Problem, key: Tensor) -> Descent:
        if self.step is None and not block(problem).linear:
            raise ConfigError("strategy.step", "there is a step by itself for linear bottom networks; give one")
        size = self._owner(problem).targets.numel()
        power = _parties.powers(0 if self.step else size, key, problem.dtype)
        zero = torch.zeros(size, dtype=problem.dtype)
        return Descent(0, TELL, zero, self.step or 0.0, 0, power, _parties.everybody(problem))

    def plan(self, problem: Problem, state: Descent, key: Tensor) -> Exchange:
        there = _parties.parties(state.presence)
        if state.phase == TELL:
            return _parties.ask("tell train", there, {})
        if state.phase == POWER:
            return _parties.ask("power", there, {"u": state.power.direction})
        holder = self._owner(problem)
        gradient = holder.gradient(holder.k * state.a)
        coded = {}
        if self.broadcast is not None:
            code = self.broadcast.compress(gradient, keys.fold(key, "broadcast"))
            nbytes = self.broadcast.size(code, gradient.numel()).expand(there.numel())
            gradient = self.broadcast.restore(code, gradient.numel()).to(problem.dtype)
            coded["gradient"] = Coded(self.broadcast.name, nbytes)
        numbers = {"coupling": holder.k, "step": state.step, "momentum": self._momentum(state)}
        down = {name: torch.tensor(value, dtype=problem.dtype) for name, value in numbers.items()}
        return _parties.ask("move", there, {**down, "gradient": gradient})._replace(coded=coded)

    def absorb(self, problem: Problem, state: Descent, replies: Replies, key: Tensor) -> tuple[Descent, Info]:
        presence, whole, told = _parties.heard(problem, state.presence, replies, self.absent, self.patience)
        if not whole:  # those who answered have moved: everybody tells where he is
            return state._replace(presence=presence, phase=TELL, since=0), {"parties": told}
        state, holder = state._replace(presence=presence), self._owner(problem)
        if state.phase == TELL:
            a = _parties.total(replies, "outputs")
            return state._replace(phase=POWER if state.power.going else MOVE, a=a), {}
        if state.phase == POWER:
            power = _parties.powered(state.power, _parties.total(replies, "outputs"))
            if power.going:
                return state._replace(power=power), {"lambda_max": power.largest}
            smooth = holder.k**2 * power.largest * holder.loss.smooth + self.l2
            found = state._replace(power=power, phase=MOVE, step=self.safety / smooth)
            return found, {"lambda_max": power.largest, "lipschitz": smooth, "step": found.step}
        a = _parties.total(replies, "moved")
        info = {
            "objective": float(holder.value(holder.k * a)) + float(replies.metrics["penalty"].sum()),
            "step": state.step,
        }
        return state._replace(round=state.round + 1, since=state.since + 1, a=a), info

    def model(self, problem: Problem, state: Descent) -> Named | None:
        return None

    def _momentum(self, state: Descent) -> float:
        if self.acceleration == "none":
            return 0.0
        if self.l2 == 0:
            return state.since / (state.since + 3.0)
        root = math.sqrt(self.l2 * state.step)
        return (1.0 - root) / (1.0 + root)

    def _owner(self, problem: Problem) -> Owner:
        return owner(problem, self.loss, self.normalise)
