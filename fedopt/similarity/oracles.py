"""What clients answer: gradients, differences of gradients, proximal points, products with their Hessian.

All vectors are directions of descent, so that rules, attacks and codecs see what they see of other methods: `delta` is
minus a gradient, or a step. A client's answer counts as one, whatever it holds, but nothing where it holds no sample of
the part.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from fedopt import keys
from fedopt.problem import Problem
from fedopt.programs import evaluation
from fedopt.similarity.groups import Groups
from fedopt.types import Batch, Client, ClientProgram, Named, Programs, Uplink

ANCHOR = "anchor"
"""Key of a client's memory: its gradient at the anchor point, without l2 `[d]`."""

DIFFERENCE = "difference"
"""The vector of programs whose answer is compressed."""

ERROR = "error"
"""A client's own error of compression, told at the end of an epoch."""

SLOPE = "slope"
"""A client's gradient, l2 and all, where its proximal step ended, as a descent."""

KEPT_ERROR = f"compression.{DIFFERENCE}.error"
"""Where feedback "ef14" of [compression] keeps it."""


class Summed(NamedTuple):
    """Carry of a vector summed over samples."""

    total: Tensor
    loss: Tensor
    seen: Tensor
    steps: Tensor


def programs(problem: Problem, parts: Groups, *, passes: int = 0, l2: float = 0.0, noise: float = 0.0) -> Programs:
    """The programs by name; those of a part end in its letter where samples are told apart by classes.

    gradient      delta = -∇f_m(x)
    anchor        the same, and the client keeps it
    difference    difference = -(∇f_m(x) - ∇f_m(w) - shift), w the anchor point
    closing       delta = -∇f_m(x), and the error of compression `error`, which begins anew at zero
    curvature     delta = -∇²f_m(x) u
    prox          delta = v - x, v = argmin f_m(v) + (l2/2)‖v‖² + ⟨shift - ∇f_m(w), v⟩ + (ρ/2)‖v - x‖² + (γ/2)‖v - y‖²,
                  by `passes` steps of conjugate gradients, which need the same samples each time
    stabilised    the same, and slope = -∇f_m(v)
    noise: deviation of Gaussian noise that a client adds to its gradient.
    """
    work: dict[str, ClientProgram] = {"evaluate": evaluation(problem)}
    for part in ("f", "g") if parts.classes else ("",):
        work[f"gradient{part}"] = _gradient(problem, parts, part, keep=False, noise=noise)
        work[f"anchor{part}"] = _gradient(problem, parts, part, keep=True, noise=noise)
        work[f"curvature{part}"] = _curvature(problem, parts, part)
    work["difference"] = _difference(problem, parts)
    work["closing"] = _closing(problem, parts)
    work["prox"] = _prox(problem, passes, l2, told=False)
    work["stabilised"] = _prox(problem, passes, l2, told=True)
    return Programs(work, {ANCHOR: torch.zeros(problem.d, dtype=problem.dtype)})


def _zero(problem: Problem, client: Client) -> Summed:
    zero = client.key.new_zeros((), dtype=problem.dtype)
    return Summed(torch.zeros_like(client.down["params"]), zero, zero, client.key.new_zeros(()))


def _added(problem: Problem, client: Client, carry: Summed, batch: Batch) -> Summed:
    """The sum of gradients with that of one more batch."""

    def objective(x: Tensor) -> Tensor:
        params, word = problem.network.spec.unflatten(x), keys.fold(client.key, "step", carry.steps)
        loss, _ = problem.objective(params, {}, batch, word)
        return loss

    slope, loss = grad_and_value(objective)(client.down["params"])
    samples = batch["mask"].to(problem.dtype).sum()
    return Summed(
        carry.total + slope * samples, carry.loss + loss.detach() * samples, carry.seen + samples, carry.steps + 1
    )


def _told(carry: Summed) -> tuple[Tensor, Named, Tensor]:
    """(the mean, metrics, the weight 1, or 0 where nothing was seen)"""
    seen = carry.seen.clamp(min=1.0)
    return carry.total / seen, {"loss": carry.loss / seen, "steps": carry.steps}, (carry.seen > 0).to(carry.loss.dtype)


def _gradient(problem: Problem, parts: Groups, part: str, *, keep: bool, noise: float) -> ClientProgram:
    def step(client: Client, carry: Summed, batch: Batch) -> Summed:
        return _added(problem, client, carry, parts.within(part, batch))

    def finish(client: Client, carry: Summed) -> Uplink:
        slope, metrics, weight = _told(carry)
        sent = slope
        if noise:
            drawn = keys.normal(keys.fold(client.key, "noise"), problem.d, dtype=problem.dtype)
            sent = slope + noise * drawn
        return Uplink({"delta": -sent}, metrics, {ANCHOR: slope} if keep else {}, weight)

    return ClientProgram(lambda client: _zero(problem, client), step, finish)


def _difference(problem: Problem, parts: Groups) -> ClientProgram:
    def step(client: Client, carry: Summed, batch: Batch) -> Summed:
        return _added(problem, client, carry, batch)

    def finish(client: Client, carry: Summed) -> Uplink:
        slope, metrics, weight = _told(carry)
        change = slope - client.memory[ANCHOR] - client.down["shift"]
        return Uplink({DIFFERENCE: -change}, metrics, {}, weight)

    return ClientProgram(lambda client: _zero(problem, client), step, finish)


def _closing(problem: Problem, parts: Groups) -> ClientProgram:
    def step(client: Client, carry: Summed, batch: Batch) -> Summed:
        return _added(problem, client, carry, batch)

    def finish(client: Client, carry: Summed) -> Uplink:
        slope, metrics, weight = _told(carry)
        vectors, memory = {"delta": -slope}, {}
        if KEPT_ERROR in client.memory:
            error = client.memory[KEPT_ERROR]
            vectors[ERROR], memory = error, {KEPT_ERROR: torch.zeros_like(error)}
        return Uplink(vectors, metrics, memory, weight)

    return ClientProgram(lambda client: _zero(problem, client), step, finish)


def _curvature(problem: Problem, parts: Groups, part: str) -> ClientProgram:
    spec = problem.network.spec

    def step(client: Client, carry: Summed, batch: Batch) -> Summed:
        batch = parts.within(part, batch)
        word = keys.fold(client.key, "step", carry.steps)

        def along(x: Tensor) -> tuple[Tensor, Tensor]:
            def objective(x: Tensor) -> Tensor:
                loss, _ = problem.objective(spec.unflatten(x), {}, batch, word)
                return loss

            slope, loss = grad_and_value(objective)(x)
            return slope @ client.own["direction"], loss

        # twice backward: a pass forward would have torch compile its rules for that first
        product, loss = grad(along, has_aux=True)(client.down["params"])
        samples = batch["mask"].to(problem.dtype).sum()
        return Summed(
            carry.total + product * samples, carry.loss + loss.detach() * samples, carry.seen + samples, carry.steps + 1
        )

    def finish(client: Client, carry: Summed) -> Uplink:
        product, metrics, weight = _told(carry)
        return Uplink({"delta": -product}, metrics, {}, weight)

    return ClientProgram(lambda client: _zero(problem, client), step, finish)


class Moved(NamedTuple):
    """Carry of a client's proximal step."""

    point: Tensor
    slope: Tensor
    """Of the subproblem where the last batch was seen,"""
    direction: Tensor
    """and where it went from there."""
    own: Tensor
    """Gradient of the client's own loss, l2 and all, at the point."""
    loss: Tensor
    seen: Tensor
    steps: Tensor


def _prox(problem: Problem, passes: int, l2: float, *, told: bool) -> ClientProgram:
    """Conjugate gradients on the whole of the samples, `passes` times; or a step of gradient descent for each batch."""
    spec = problem.network.spec

    def start(client: Client) -> Moved:
        zero, point = client.key.new_zeros((), dtype=problem.dtype), client.down["params"]
        nothing = torch.zeros_like(point)
        return Moved(point, nothing, nothing, nothing, zero, zero, client.key.new_zeros(()))

    def step(client: Client, carry: Moved, batch: Batch) -> Moved:
        down, word, v = client.down, keys.fold(client.key, "step", carry.steps), carry.point

        def own(v: Tensor) -> Tensor:
            loss, _ = problem.objective(spec.unflatten(v), {}, batch, word)
            return loss + 0.5 * l2 * v @ v

        at_v, loss = grad_and_value(own)(v)
        pull = down["rho"] * (v - down["params"]) + down["gamma"] * (v - down["y"])
        slope = at_v + down["shift"] - client.memory[ANCHOR] + pull
        if passes:
            direction = _conjugate(slope, carry)
            curved = grad(lambda v: grad(own)(v) @ direction)(v) + (down["rho"] + down["gamma"]) * direction
            move = _share(-(slope @ direction), (direction @ curved).abs()) * direction
            v = torch.where(carry.steps < passes, v + move, v)  # one pass more, where it is told, is for the gradient
        else:
            direction = -slope
            v = v + down["lr"] * direction
            at_v = grad(own)(v) if told else at_v
        samples = batch["mask"].to(problem.dtype).sum()
        return Moved(
            v, slope, direction, at_v, carry.loss + loss.detach() * samples, carry.seen + samples, carry.steps + 1
        )

    def finish(client: Client, carry: Moved) -> Uplink:
        seen = carry.seen.clamp(min=1.0)
        metrics = {"loss": carry.loss / seen, "steps": carry.steps}
        weight = (carry.seen > 0).to(carry.loss.dtype)
        vectors = {"delta": carry.point - client.down["params"]}
        if told:
            vectors[SLOPE] = -carry.own
        return Uplink(vectors, metrics, {}, weight)

    return ClientProgram(start, step, finish)


def _conjugate(slope: Tensor, carry: Moved) -> Tensor:
    """The next direction by Polak and Ribière's rule, anew where that would be negative."""
    beta = _share(slope @ (slope - carry.slope), carry.slope @ carry.slope).clamp(min=0.0)
    return beta * carry.direction - slope


def _share(one: Tensor, other: Tensor) -> Tensor:
    """one / other, and 0 for other = 0."""
    return torch.where(other > 0, one / torch.where(other > 0, other, torch.ones_like(other)), torch.zeros_like(other))
