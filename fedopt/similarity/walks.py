"""Methods whose clients take proximal steps: a reference w where everybody's gradient is known, and steps from x."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.similarity.asking import Answer, Question, Setting, Turn


class Walk(NamedTuple):
    """State."""

    phase: str
    """`anchor`: everybody is asked for the gradient at w; `step`: proximal steps from x."""
    x: Tensor
    w: Tensor
    at_w: Tensor
    """∇f(w), without l2."""


def anchored(own: Walk, some: Tensor | None = None) -> Turn:
    """Everybody, or some, are asked for the gradient at w, and keep it."""
    asked = own.w.new_zeros(0, dtype=torch.int64) if some is None else some
    return Turn(own._replace(phase="anchor"), (Question("f", own.w, "anchor", asked),), own.x)


def stepped(
    setting: Setting,
    own: Walk,
    key: Tensor,
    rho: float,
    gamma: float,
    y: Tensor,
    lr: float,
    *,
    passes: int,
    program: str = "prox",
    some: Tensor | None = None,
) -> Turn:
    """A step of one client m, drawn uniformly, or of `some`; all of them, where that is empty.

    argmin f_m(v) + (l2/2)‖v‖² + ⟨∇f(w) - ∇f_m(w), v⟩ + (ρ/2)‖v - x‖² + (γ/2)‖v - y‖²
    """
    pool = setting.problem.pool
    one = pool[keys.sample(keys.fold(key, "client"), pool.numel(), 1)]
    numbers = {"rho": rho, "gamma": gamma, "lr": lr}
    down = {name: torch.tensor(value, dtype=own.x.dtype) for name, value in numbers.items()}
    asked = one if some is None else some
    if passes and program == "stabilised":
        passes += 1  # for the gradient where the steps ended
    question = Question("f", own.x, program, asked, {**down, "shift": own.at_w, "y": y}, passes)
    return Turn(own._replace(phase="step"), (question,), own.x)


def moved(own: Walk, answer: Answer) -> Walk:
    """After the answer to either."""
    if own.phase == "anchor":
        return own._replace(at_w=answer.vector)
    return own._replace(x=own.x - answer.vector)
