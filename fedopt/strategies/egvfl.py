"""EGVFL: extragradient on the saddle form of vertical federated learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt.problem import Problem
from fedopt.registry import ConfigError, declare
from fedopt.strategies import _parties
from fedopt.strategies._parties import Absent, Count, NotNegative, Positive, Power, Presence
from fedopt.types import Client, Exchange, Info, Named, Programs, Replies
from fedopt.vfl.blocks import Block, block
from fedopt.vfl.forms import Form, form
from fedopt.vfl.owner import Owner, owner
from fedopt.vfl.penalties import Penalty

TELL, POWER, LOOK, MOVE = range(4)
PROGRAMS = ("tell train", "power", "look", "move")

GROWTH = 1.2
"""How much an adaptive step may grow in an iteration."""


class Saddle(NamedTuple):
    """State: the owner's variables, the parties' outputs at their present and at their half point, the step."""

    round: int
    phase: int
    """What comes next: TELL, POWER, LOOK, MOVE."""
    v: Named
    half: Named
    a: Tensor
    """Σ_i g_i(x_i) `[m c]`, or a row for each party."""
    a_half: Tensor
    step: float
    power: Power
    presence: Presence


@declare(
    reference='"Exploring New Frontiers in Vertical Federated Learning: the Role of Saddle Point Reformulation" 2026,'
    " arXiv 2602.15996, algorithm 1 (EGVFL)",
    vertical=True,
)
@dataclass(frozen=True)
class egvfl:
    """Extragradient on min_{x,z} max_y l(z) + r(x) + ⟨y, s (k A x - z)⟩, x at the parties, z and y at the owner.

        look    x_i^h = prox(x_i - γ (s k A_iᵀ p + ∇r(x_i)));        z^h, y^h likewise;   parties tell A_i x_i^h
        move    x_i <- prox(x_i - γ (s k A_iᵀ p^h + ∇r(x_i^h)));     z, y likewise;       parties tell A_i x_i

    Two exchanges per iteration, m outputs up and m multipliers down for each party in each. Only the sum of what goes
    up is needed, except in the form `split`. The step is γ = safety / L_F with λ_max(AᵀA) from a power iteration over
    the parties, or `step`; a bottom network that is not linear needs a `step`, and has no guarantee.

    loss: of one person; see `fedopt.vfl.losses`. l2, l1: of r(x) = l2 ‖x‖² / 2 + l1 ‖x‖₁.
    form: how the coupling is written; see `fedopt.vfl.forms`. rho: of `augmented`.
    constraint: s. step_x, step_z, step_y: factors of γ for the three blocks. normalise: k = 1/√m, else k = 1.
    step: γ; None is safety / L_F. adaptive: γ follows the ratio of changes ‖F(u^h) - F(u)‖ / ‖u^h - u‖ that is met.
    output: weights that are scored, those of the last iteration or the mean of the half points.
    absent, patience: what becomes of a run whose party is gone; see `_parties.heard`.

    Extragradient does not go the same way in other units of A: hence `normalise`, `constraint` and the block factors.
    It is not faster than accelerated gradient descent (`vertical_gd`) on well conditioned data. What the saddle form
    gives is that everything that is communicated enters linearly.

    *Differences from the paper:* it states the step by its bound alone; the adaptive step, the factors and all forms
    but the first are ours.
    """

    loss: Literal["squares", "logistic", "softmax", "huber"] = "squares"
    l2: NotNegative = 1e-3
    l1: NotNegative = 0.0
    form: Literal["lagrangian", "augmented", "dual", "split"] = "lagrangian"
    rho: NotNegative = 0.1
    constraint: Positive = 1.0
    step: Positive | None = None
    safety: Positive = 0.9
    step_x: Positive = 1.0
    step_z: Positive = 1.0
    step_y: Positive = 1.0
    adaptive: bool = False
    normalise: bool = True
    output: Literal["last", "average"] = "last"
    absent: Absent = "wait"
    patience: Count = 5

    def programs(self, problem: Problem) -> Programs:
        mine, penalty = block(problem), Penalty(self.l2, self.l1)
        scored = _parties.STARTED if self.output == "last" else "average"
        weights = problem.initial["params"]

        def field(client: Client, x: Tensor, at: Tensor) -> Tensor:
            pushed = mine.pull(at, x, self._told(client))
            return client.down["coupling"] * pushed + penalty.gradient(at)

        def look(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
            start, gamma = client.memory[_parties.STARTED], client.down["step"]
            force = field(client, x, start)
            half = penalty.prox(start - gamma * force, gamma)
            kept = {"start": start, "half": half}
            if self.adaptive:
                kept["force"] = force
            return {"outputs": mine.forward(half, x)}, kept, {}

        def move(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
            start, half, gamma = client.memory["start"], client.memory["half"], client.down["step"]
            force = field(client, x, half)
            after = penalty.prox(start - gamma * force, gamma)
            kept = {_parties.STARTED: after}
            metrics = {"penalty": penalty.value(after)}
            if self.adaptive:
                metrics["moved"] = (half - start).square().sum()
                metrics["turned"] = (force - client.memory["force"]).square().sum()
            if self.output == "average":
                before, share = client.memory["average"], client.down["share"]
                kept["average"] = before + share * (half - before)
            return {"outputs": mine.forward(after, x)}, kept, metrics

        memory = {_parties.STARTED: weights, "start": weights, "half": weights}
        if self.output == "average":
            memory["average"] = weights
        if self.adaptive:
            memory["force"] = torch.zeros_like(weights)
        targets = self._owner(problem).targets
        length = {"outputs": targets.numel()}
        kept = ("start", "half", *(("force",) if self.adaptive else ()))
        changed = (_parties.STARTED, *(("average",) if self.output == "average" else ()))
        numbers = ("penalty", *(("moved", "turned") if self.adaptive else ()))
        work = {
            "power": _parties.powering(mine, targets.numel()),
            "look": _parties.answering(look, length, kept),
            "move": _parties.answering(move, length, changed, numbers),
            **_parties.telling(problem, mine, penalty, targets.shape[1], scored),
        }
        return Programs(work, memory, longest=_parties.longest(problem, targets.shape[1]))

    def init(self, problem: Problem, key: Tensor) -> Saddle:
        linear = self._block(problem).linear
        if self.form == "dual":  # which a loss of many outputs refuses
            self._owner(problem).prox(self._owner(problem).targets.flatten(), 1.0)
        if self.step is None and not linear:
            raise ConfigError("strategy.step", "there is a step by itself for linear bottom networks; give one")
        holder = self._owner(problem)
        size = holder.targets.numel()
        zero = torch.zeros(size, dtype=problem.dtype)
        power = _parties.powers(0 if self.step else size, key, problem.dtype)
        return Saddle(0, TELL, {}, {}, zero, zero, self.step or 0.0, power, _parties.everybody(problem))

    def plan(self, problem: Problem, state: Saddle, key: Tensor) -> Exchange:
        name, there, one = PROGRAMS[state.phase], _parties.parties(state.presence), torch.tensor
        if state.phase == TELL:
            return _parties.ask(name, there, {}, rows=self._form(problem).each)
        if state.phase == POWER:
            return _parties.ask(name, there, {"u": state.power.direction})
        shape = self._form(problem)
        v, a = (state.v, state.a) if state.phase == LOOK else (state.half, state.a_half)
        told = shape.say(v, a)
        down = {
            "coupling": one(self.constraint * self._owner(problem).k, dtype=problem.dtype),
            "step": one(self.step_x * state.step, dtype=problem.dtype),
        }
        if self.output == "average":
            down["share"] = one(1.0 / (state.round + 1), dtype=problem.dtype)
        if shape.each:
            return _parties.ask(name, there, down, rows=True, own={"multipliers": told})
        return _parties.ask(name, there, {**down, "multipliers": told})

    def absorb(self, problem: Problem, state: Saddle, replies: Replies, key: Tensor) -> tuple[Saddle, Info]:
        presence, whole, told = _parties.heard(problem, state.presence, replies, self.absent, self.patience)
        if not whole:
            gone = int(presence.there.sum()) < int(state.presence.there.sum())
            # without somebody the sum is another one, and so are the rows
            return state._replace(presence=presence, phase=TELL if gone else state.phase), {"parties": told}
        state = state._replace(presence=presence)
        shape = self._form(problem)
        rows = shape.each and state.phase != POWER
        a = replies.vectors["outputs"] if rows else _parties.total(replies, "outputs")
        if state.phase == TELL:
            v = shape.start(a) if not state.v or next(iter(state.v.values())).shape != a.shape else state.v
            after = POWER if state.power.going else LOOK
            return state._replace(phase=after, v=v, a=a), {}
        if state.phase == POWER:
            return self._powered(state, a, shape)
        rates = {"z": self.step_z * state.step, "y": self.step_y * state.step}

        def moved(field: Named) -> Named:
            return shape.settle(
                {n: value - rates[n] * field[n] for n, value in state.v.items()}, self.step_y * state.step
            )

        force = shape.field(state.v, state.a)
        if state.phase == LOOK:
            return state._replace(phase=MOVE, half=moved(force), a_half=a), {}
        turned = shape.field(state.half, state.a_half)
        v = moved(turned)
        step = state.step
        if self.adaptive:
            change = float(replies.metrics["moved"].sum()) + _squared(state.half, state.v)
            turn = float(replies.metrics["turned"].sum()) + _squared(turned, force)
            met = math.sqrt(change / turn) if turn > 0 else math.inf
            step = min(GROWTH * step, self.safety * met)
        holder = self._owner(problem)
        outputs = holder.k * (a.sum(dim=0) if shape.each else a)
        info = {
            "objective": float(holder.value(outputs)) + float(replies.metrics["penalty"].sum()),
            "step": state.step,
        }
        if "z" in v:
            info["constraint"] = float((outputs - (v["z"].sum(dim=0) if shape.each else v["z"])).norm())
        return state._replace(round=state.round + 1, phase=LOOK, v=v, a=a, step=step), info

    def model(self, problem: Problem, state: Saddle) -> Named | None:
        return None

    def _powered(self, state: Saddle, image: Tensor, shape: Form) -> tuple[Saddle, Info]:
        power = _parties.powered(state.power, image)
        if power.going:
            return state._replace(power=power), {"lambda_max": power.largest}
        lipschitz = shape.lipschitz(power.largest, int(state.presence.there.sum()), self.l2)
        step = self.safety / lipschitz
        found = state._replace(power=power, phase=LOOK, step=step)
        return found, {"lambda_max": power.largest, "lipschitz": lipschitz, "step": step}

    def _told(self, client: Client) -> Tensor:
        return client.own["multipliers"] if self.form == "split" else client.down["multipliers"]

    def _block(self, problem: Problem) -> Block:
        return block(problem)

    def _owner(self, problem: Problem) -> Owner:
        return owner(problem, self.loss, self.normalise)

    def _form(self, problem: Problem) -> Form:
        return form(self.form, self._owner(problem), self.constraint, self.rho)


def _squared(a: Named, b: Named) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a)
