"""Accelerated extragradient sliding within another: each of two groups is asked as rarely as its similarity allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity.asking import Answer, Constant, Question, Setting, Turn, by_questions, of_groups
from fedopt.similarity.home import Count, NotNegative, Positive, Share, Solving
from fedopt.similarity.sliding import Sliding, sliding
from fedopt.types import Batches, Info, Optimizer, Rule


class Nested(NamedTuple):
    """State of both methods."""

    phase: str
    """`ahead`, `inner ahead`, `inner after` or `after`."""
    x: Tensor
    x_f: Tensor
    x_g: Tensor
    t: Tensor
    v: Tensor
    """x of the inner method, and"""
    v_f: Tensor
    at_g: Tensor
    """P_g at the last v_f."""
    steps: int
    """Of the inner method in this iteration."""


@declare(
    reference="Bylinkin, Skorik, Bystrov, Berezin, Avetisyan, Beznosikov 2026, 'Accelerated Methods with Complexity "
    "Separation Under Data Similarity for Federated Learning Problems', arXiv 2601.08614, algorithm 4 "
    "(outer) and 5 (inner)",
    examples=({"l2": 0.5, "rare_classes": (0,), "delta_f": 1.0, "delta_g": 2.0},),
    exceptions={"one client": "the server's own data is no client's, and steps are proximal ones"},
)
@by_questions
@dataclass(frozen=True)
class c_aeg:
    """`aeg` with f - f_1 as the communicated part, whose subproblem is solved by another `aeg` with g - g_1 as that.

        x_g = τ x + (1 - τ) x_f;  t = P_f(x_g)                                                        [f is asked]
        x_f ≈ argmin_v A(v) = ⟨t, v - x_g⟩ + ‖v - x_g‖²/(2θ) + f_1(v) + g(v)                            [g is asked]
        x   = x + η α (x_f - x) - η ∇h(x_f)                                                           [f is asked]

    The inner method starts at x_g, has strong convexity δ_f + μ and two questions to g per step, and ends when
    ‖∇A(v)‖ <= `inner_tolerance` δ_f ‖v - x_g‖ or after `inner_steps`. O(√(δ_f/μ)) rounds with f and O(√(δ_g/μ)) with g.
    g has to be convex; where it may not be, take `acc_vrcs`.

    l2: λ of (λ/2)‖x‖², which the server adds. mu: μ; None: l2. delta_f, delta_g: δ_f and δ_g; None: measured by power
        iterations over the groups. rare, rare_classes: clients, or classes, of the group g (see `fedopt.similarity`);
        the group that is nearer to
        the server's data becomes f. prox: how the server solves its subproblem.

    Differences from the paper: its pseudocode was not at hand; this is a reconstruction along its published rates.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta_f: Positive | None = None
    delta_g: Positive | None = None
    inner_tolerance: Positive = 0.3
    inner_steps: Count = 500
    rare: tuple[int, ...] | Literal["auto"] = ()
    rare_share: Share | None = None
    rare_classes: tuple[int, ...] = ()
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_groups(self.delta_f, self.delta_g)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        setting.need_two()
        own = Nested("ahead", x, x, x, x[:0], x, x, x[:0], 0)
        return self._ahead(setting, own)

    def proceed(self, setting: Setting, own: Nested, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        outer, inner = self._outer(setting), self._inner(setting)
        if own.phase == "ahead":
            t = setting.difference("f", own.x_g, answers[0])
            return self._inside(setting, own._replace(t=t, v=own.x_g, v_f=own.x_g, steps=0))
        if own.phase == "inner ahead":
            y = inner.ahead(own.v, own.v_f)
            # both proximal terms and both linear ones as one of each
            rho = inner.rho + outer.rho
            centre = (inner.rho * y + outer.rho * own.x_g) / rho
            linear = own.t + setting.difference("g", y, answers[0])
            found = setting.home.prox(linear, centre, rho, key)
            after = own._replace(phase="inner after", v_f=found.point)
            return Turn(after, (Question("g", found.point),), own.x_f, {"server_steps": found.steps})
        if own.phase == "inner after":
            v = own.v_f
            at_g = setting.difference("g", v, answers[0])
            slope = own.t + outer.rho * (v - own.x_g) + at_g + setting.home.total(v)
            own = own._replace(steps=own.steps + 1, at_g=at_g)
            near = float(slope.norm()) <= self.inner_tolerance * setting.constants["delta_f"] * float(
                (v - own.x_g).norm()
            )
            if near or own.steps >= self.inner_steps:
                info: Info = {"inner_steps": own.steps}
                return Turn(own._replace(phase="after", x_f=v), (Question("f", v),), v, info)
            return self._inside(setting, own._replace(v=inner.after(own.v, v, slope)))
        slope = setting.difference("f", own.x_f, answers[0]) + own.at_g + setting.home.total(own.x_f)
        return self._ahead(setting, own._replace(x=outer.after(own.x, own.x_f, slope)))

    def _ahead(self, setting: Setting, own: Nested) -> Turn:
        x_g = self._outer(setting).ahead(own.x, own.x_f)
        return Turn(own._replace(phase="ahead", x_g=x_g), (Question("f", x_g),), own.x_f)

    def _inside(self, setting: Setting, own: Nested) -> Turn:
        y = self._inner(setting).ahead(own.v, own.v_f)
        return Turn(own._replace(phase="inner ahead"), (Question("g", y),), own.x_f)

    def _outer(self, setting: Setting) -> Sliding:
        return sliding(setting.mu, setting.constants["delta_f"])

    def _inner(self, setting: Setting) -> Sliding:
        return sliding(setting.constants["delta_f"] + setting.mu, setting.constants["delta_g"])
