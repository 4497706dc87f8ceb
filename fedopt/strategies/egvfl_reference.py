"""Vertical extragradient with a reference point: compression, sampled parties, people and features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.problem import Problem
from fedopt.registry import ConfigError, declare
from fedopt.strategies import _parties
from fedopt.strategies._parties import Absent, Count, NotNegative, Positive, Power, Presence, Share
from fedopt.types import Client, Codec, Coded, Exchange, Info, Named, Programs, Replies
from fedopt.vfl.blocks import block
from fedopt.vfl.forms import lagrangian
from fedopt.vfl.owner import Owner, owner
from fedopt.vfl.penalties import Penalty

SYNC, POWER, STEP = range(3)


class Referenced(NamedTuple):
    """State: the owner's variables and their reference point, what the parties' reference points give, the step."""

    round: int
    phase: int
    z: Tensor
    y: Tensor
    w_z: Tensor
    w_y: Tensor
    a_w: Tensor
    """Σ_i A_i w_i `[m c]`."""
    fresh: bool
    """The parties have yet to be told w_y."""
    step: float
    power: Power
    error: Tensor
    """What the broadcast's codec has not sent yet; nothing without a contraction."""
    last: Tensor
    """The iteration in which each party moved last `[n]`."""
    presence: Presence


@declare(
    reference='"Exploring New Frontiers in Vertical Federated Learning: the Role of Saddle Point Reformulation" 2026,'
    " arXiv 2602.15996, algorithms 2 to 5; Beznosikov, Richtarik, Diskin, Ryabinin, Gasnikov 2022, arXiv 2110.03313"
    " (MASHA1, MASHA2)",
    vertical=True,
    vectors=("change",),
)
@dataclass(frozen=True)
class egvfl_reference:
    """Extragradient around a reference point w, to which everything that travels is a difference.

        ū = τ u + (1 - τ) w - γ F(w);    u^h = prox(ū)                                 nothing travels
        parties tell Q(A_i (x_i^h - w_i)), the owner Q_0(y^h - w_y)
        u <- prox(ū - γ [F(u^h) - F(w)]~)                                              with what travelled in F
        with probability 1 - τ:  w <- u, and A_i w_i, w_y are told as they stand

    One exchange per iteration. Since everything enters linearly, any unbiased Q leaves the fixed point where it is:

        Q of [compression], Q_0 of [compression.down]      algorithm 2; algorithm 3 where they are contractions: then
                                                           [compression.feedback] is ef14, and Q_0 has its own
        take        parties per iteration, drawn at random; the others' step is local, made up for when they are next
                    asked                                                              algorithm 4
        rows        share of the people that an iteration looks at, the same at all parties
        features    share of its features that a party moves in an iteration           algorithm 5

    Every party is asked whenever w moves, and once more to be told w_y.

    With ω, E ‖Q v‖² <= ω ‖v‖² (its product over all that is sampled), 1 - τ = 1/ω and γ = factor / (ω L_F); with
    contractions ‖Q v - v‖² <= (1 - 1/δ) ‖v‖², 1 - τ = 1/δ and γ = factor / (δ L_F).

    loss, l2, l1, constraint, normalise, absent, patience: as for `egvfl`. refresh: 1 - τ. step: γ.
    factor: 0.5 by default, 0.25 with a contraction. Larger factors pay, though no theory admits them: see docs/vfl.md.

    *Differences from the paper:* it names these algorithms and states their rates; the lines are a reconstruction along
    MASHA, which is their published relative. An exchange that lacks a party is followed by a new reference point.
    """

    codec: Codec
    broadcast: Codec | None = None
    loss: Literal["squares", "logistic", "softmax", "huber"] = "squares"
    l2: NotNegative = 1e-3
    l1: NotNegative = 0.0
    constraint: Positive = 1.0
    step: Positive | None = None
    factor: Positive | None = None
    refresh: Share | None = None
    take: Count | None = None
    rows: Share | None = None
    features: Share | None = None
    normalise: bool = True
    absent: Absent = "wait"
    patience: Count = 5

    def lengths(self, problem: Problem) -> dict[str, int]:
        """Of the vectors that are compressed."""
        return {"change": self._seen(problem) * self._owner(problem).targets.shape[1]}

    def programs(self, problem: Problem) -> Programs:
        mine, penalty = block(problem), Penalty(self.l2, self.l1)
        if not mine.linear:
            raise ConfigError(
                "model", "linear bottom networks are needed (model logistic with bias = false); take egvfl for others"
            )
        people, seen, d = self._people(problem), self._seen(problem), problem.d
        moved = max(1, round((self.features or 1.0) * d))

        def step(client: Client, x: Tensor, told: bool, moves: bool) -> tuple[Named, Named, Named]:
            down, memory = client.down, client.memory
            now, w, force, gamma, tau = (
                memory[_parties.STARTED],
                memory["w"],
                memory["force"],
                down["step"],
                down["tau"],
            )
            if told:  # the force at the reference point, until there is another one
                force = down["coupling"] * mine.pull(w, x, down["reference"])
            pushed = gamma * (force + penalty.gradient(w))
            if self.take is not None:  # iterations without this party: x <- τ x + (1 - τ) w - γ F(w), so often
                left = tau ** client.own["missed"].to(tau.dtype)
                now = left * now + (1.0 - left) * (w - pushed / (1.0 - tau))
            base = tau * now + (1.0 - tau) * w - pushed
            half = penalty.prox(base, gamma)
            looked = x[_chosen(down["rows"], people, seen)] if self.rows is not None else x
            change = mine.forward(half - w, looked)
            turned = down["coupling"] * mine.pull(w, looked, down["change"]) * (people / seen)
            turned = down["weight"] * (turned + penalty.gradient(half - w))
            if self.features is not None:
                turned = (d / moved) * turned * _mask(keys.fold(client.key, "features"), d, moved, turned)
            after = penalty.prox(base - gamma * turned, gamma)
            vectors, kept = {"change": change}, {_parties.STARTED: after, "force": force}
            if moves:
                vectors["outputs"], kept["w"] = mine.forward(after, x), after
            return vectors, kept, {}

        def sync(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
            weights = client.memory[_parties.STARTED]
            return {"outputs": mine.forward(weights, x)}, {"w": weights}, {}

        targets = self._owner(problem).targets
        whole, part = {"outputs": targets.numel()}, self.lengths(problem)
        work = {
            "sync": _parties.answering(sync, whole, ("w",)),
            "power": _parties.powering(mine, targets.numel()),
            **_parties.telling(problem, mine, penalty, targets.shape[1]),
        }
        kept = (_parties.STARTED, "force")
        for told in (False, True):
            still, moving = (partial(step, told=told, moves=moves) for moves in (False, True))
            work[_name(told, False)] = _parties.answering(still, part, kept)
            work[_name(told, True)] = _parties.answering(moving, {**part, **whole}, (*kept, "w"))
        weights = problem.initial["params"]
        return Programs(
            work,
            {_parties.STARTED: weights, "w": weights, "force": torch.zeros_like(weights)},
            longest=_parties.longest(problem, targets.shape[1]),
        )

    def init(self, problem: Problem, key: Tensor) -> Referenced:
        if self.take is not None and self.take > problem.clients:
            raise ConfigError("strategy.take", f"at most {problem.clients} parties are there; {self.take} given")
        if self.take is not None and self.l1 > 0:
            raise ConfigError("strategy.l1", "a party cannot make up for missed steps with l1 > 0; remove take or l1")
        size = self._owner(problem).targets.numel()
        zero = torch.zeros(size, dtype=problem.dtype)
        feeds = self.broadcast is not None and self.broadcast.kind == "contraction"
        error = zero[: self.lengths(problem)["change"]] if feeds else zero[:0]
        power = _parties.powers(0 if self.step else size, key, problem.dtype)
        last = torch.full((problem.clients,), -1)
        there = _parties.everybody(problem)
        return Referenced(0, SYNC, zero, zero, zero, zero, zero, False, self.step or 0.0, power, error, last, there)

    def plan(self, problem: Problem, state: Referenced, key: Tensor) -> Exchange:
        there = _parties.parties(state.presence)
        if state.phase == SYNC:
            return _parties.ask("sync", there, {})
        if state.phase == POWER:
            return _parties.ask("power", there, {"u": state.power.direction})
        tau, dtype = 1.0 - self._refresh(problem), problem.dtype
        moves = float(keys.uniform(keys.fold(key, "reference"), 1)[0]) < 1.0 - tau
        clients, weight = there, 1.0
        if self.take is not None and self.take < there.numel() and not (moves or state.fresh):
            clients = there[keys.sample(keys.fold(key, "parties"), there.numel(), self.take)].sort().values
            weight = there.numel() / self.take
        _, half, _ = self._ahead(problem, state)
        change, keep = half["y"] - state.w_y, None
        down = {
            "coupling": torch.tensor(self.constraint * self._owner(problem).k, dtype=dtype),
            "step": torch.tensor(state.step, dtype=dtype),
            "tau": torch.tensor(tau, dtype=dtype),
            "weight": torch.tensor(weight, dtype=dtype),
        }
        if self.rows is not None:
            down["rows"] = keys.fold(key, "rows")
            chosen = _chosen(down["rows"], self._people(problem), self._seen(problem))
            change, keep = change.reshape(self._people(problem), -1)[chosen].flatten(), chosen
        coded, error = {}, state.error
        if self.broadcast is not None:
            wanted = change + error if error.numel() else change
            code = self.broadcast.compress(wanted, keys.fold(key, "broadcast"))
            change = self.broadcast.restore(code, wanted.numel()).to(dtype)
            error = wanted - change if error.numel() else error
            nbytes = self.broadcast.size(code, wanted.numel())
            coded["change"] = Coded(self.broadcast.name, nbytes.expand(clients.numel()))
        down["change"] = change
        if state.fresh:
            down["reference"] = state.w_y
        own = {} if self.take is None else {"missed": state.round - 1 - state.last[clients]}
        asked = _parties.ask(_name(state.fresh, moves), clients, down, own=own)
        return asked._replace(coded=coded, keep=(keep, error, weight))

    def absorb(self, problem: Problem, state: Referenced, replies: Replies, key: Tensor) -> tuple[Referenced, Info]:
        presence, whole, told = _parties.heard(problem, state.presence, replies, self.absent, self.patience)
        if not whole:  # those who answered have moved, so all begin anew from where they are
            return state._replace(presence=presence, phase=SYNC), {"parties": told}
        state = state._replace(presence=presence)
        if state.phase == SYNC:
            return self._synced(problem, state, _parties.total(replies, "outputs")), {}
        if state.phase == POWER:
            return self._powered(problem, state, _parties.total(replies, "outputs"))
        chosen, error, weight = replies.exchange.keep
        shape = lagrangian(self._owner(problem), self.constraint)
        base, half, reference = self._ahead(problem, state)
        change = weight * _parties.total(replies, "change")
        if chosen is not None:
            people, seen = self._people(problem), self._seen(problem)
            rows = change.reshape(seen, -1) * (people / seen)
            change = rows.new_zeros(people, rows.shape[1]).index_copy(0, chosen, rows).flatten()
        there = {"z": state.w_z, "y": state.w_y}
        turned = shape.field(half, state.a_w + change)
        v = {n: base[n] - state.step * (turned[n] - reference[n]) for n in there}
        last = state.last.index_fill(0, replies.exchange.clients, state.round)
        state = state._replace(round=state.round + 1, z=v["z"], y=v["y"], fresh=False, error=error, last=last)
        if "outputs" in replies.vectors:
            a_w = _parties.total(replies, "outputs")
            state = state._replace(w_z=v["z"], w_y=v["y"], a_w=a_w, fresh=True)
        return state, {"step": state.step, "reference": "outputs" in replies.vectors}

    def model(self, problem: Problem, state: Referenced) -> Named | None:
        return None

    def _synced(self, problem: Problem, state: Referenced, a: Tensor) -> Referenced:
        after = POWER if state.power.going else STEP
        last = torch.full_like(state.last, state.round - 1)
        return state._replace(phase=after, w_z=state.z, w_y=state.y, a_w=a, fresh=True, last=last)

    def _powered(self, problem: Problem, state: Referenced, image: Tensor) -> tuple[Referenced, Info]:
        power = _parties.powered(state.power, image)
        if power.going:
            return state._replace(power=power), {"lambda_max": power.largest}
        lipschitz = lagrangian(self._owner(problem), self.constraint).lipschitz(power.largest, 0, self.l2)
        omega, contraction = self._spread(problem)
        step = (self.factor or (0.25 if contraction else 0.5)) / (omega * lipschitz)
        found = state._replace(power=power, phase=STEP, step=step)
        return found, {"lambda_max": power.largest, "lipschitz": lipschitz, "omega": omega, "step": step}

    def _ahead(self, problem: Problem, state: Referenced) -> tuple[Named, Named, Named]:
        """(ū, u^h, F(w)) of the owner's variables."""
        shape, tau = lagrangian(self._owner(problem), self.constraint), 1.0 - self._refresh(problem)
        now, w = {"z": state.z, "y": state.y}, {"z": state.w_z, "y": state.w_y}
        force = shape.field(w, state.a_w)
        base = {n: tau * now[n] + (1.0 - tau) * w[n] - state.step * force[n] for n in now}
        return base, base, force

    def _spread(self, problem: Problem) -> tuple[float, bool]:
        """(ω or δ, whether a contraction is in it) of all that is sampled or compressed."""
        spread, contraction = self._people(problem) / self._seen(problem), False
        if self.take is not None:
            spread *= problem.clients / self.take
        if self.features is not None:
            spread /= self.features
        length, most = self.lengths(problem)["change"], 1.0
        for codec in (self.codec, self.broadcast):
            error = 0.0 if codec is None else codec.error(length)
            if codec is None or codec.kind == "exact":
                continue
            if error is None:
                raise ConfigError(
                    "strategy.step",
                    f"'{codec.name}' promises no error, by which the step would go; give step and refresh",
                )
            contraction |= codec.kind != "unbiased"
            most = max(most, 1.0 + error if codec.kind == "unbiased" else 1.0 / max(1.0 - error, 1e-12))
        return spread * most, contraction

    def _refresh(self, problem: Problem) -> float:
        return self.refresh if self.refresh is not None else 1.0 / self._spread(problem)[0]

    def _people(self, problem: Problem) -> int:
        return self._owner(problem).targets.shape[0]

    def _seen(self, problem: Problem) -> int:
        return max(1, round((self.rows or 1.0) * self._people(problem)))

    def _owner(self, problem: Problem) -> Owner:
        return owner(problem, self.loss, self.normalise)


def _name(told: bool, moves: bool) -> str:
    return ("told" if told else "") + ("moving" if moves else "step")


def _chosen(key: Tensor, people: int, seen: int) -> Tensor:
    """So many people, drawn by a key that both ends know, increasing `[seen]`."""
    return keys.bits(key, people).topk(seen, sorted=False).indices.sort().values


def _mask(key: Tensor, d: int, moved: int, like: Tensor) -> Tensor:
    """1 at so many of d entries, else 0."""
    return torch.zeros_like(like).scatter(0, keys.bits(key, d).topk(moved, sorted=False).indices, 1.0)
