"""ALSO: an optimizer against an adversary who weights groups of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fedopt.optimizers import Inner, asks, at_params, first_step, within
from fedopt.optimizers.adam import adam
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Weights = Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)]

LEAST = 1e-12
"""Weights below it count as this in the logarithm of the projected step, which is not finite at 0."""
ADAM = adam(lr=1e-3, eps=1.19e-7, weight_decay=1e-3)
HALVINGS = 60
"""Of the interval in which the threshold of a projection is."""


def inverse_frequency(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights in proportion to 1 / n_j that sum to 1; counts: n_j > 0 samples of each group."""
    inverse = [1.0 / n for n in counts]
    return tuple(x / sum(inverse) for x in inverse)


def projection(v: Tensor, cap: float) -> Tensor:
    """The nearest point to `v [c]` with entries in [0, cap] and the sum 1: clip(v - θ, 0, cap)."""
    low, high = v.amin() - 1.0, v.amax()
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        above = (v - middle).clamp(0.0, cap).sum() > 1.0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    inside = ((v - high) > 0) & ((v - high) < cap)
    full = ((v - high) >= cap).to(v.dtype).sum() * cap
    number = inside.to(v.dtype).sum()
    exact = (torch.where(inside, v, torch.zeros_like(v)).sum() + full - 1.0) / number.clamp(min=1.0)
    return (v - torch.where(number > 0, exact, high)).clamp(0.0, cap)


@declare(
    reference="Feoktistov et al. 2025, Aligning Distributionally Robust Optimization with Practical Deep Learning "
    "Needs, arXiv 2508.16734 (ALSO)",
    examples=({"groups": 2, "of": {"name": "sgd", "lr": 0.05}, "pi_lr": 0.05},),
)
@dataclass(frozen=True)
class also:
    """Another optimizer on a loss whose groups of samples are weighted against it.

        min over x, max over π in the simplex of  Σ_i π_(g(i)) (c/n) l_i(x) - τ KL(π ‖ π̂)

        x' = x_t + step(α g_(t-1)),  π' = U(π_t, h_(t-1))       optimistic; the point itself at t = 0
        g_t = ∇ Σ_(i in B) π'_(g(i)) s l_i(x'),  h_t,j = Σ_(i in B, g(i) = j) s l_i(x')
        x_(t+1) = x_t + step(g_t),  π_(t+1) = U(π_t, h_t)
        U(π, h) = softmax((log π + η τ log π̂ + η h) / (1 + η τ))

    Uniform weights give the mean over samples, whatever groups they are in: how frequent a group is, is not divided
    out. A prior does that (`inverse_frequency`).

    groups: c; a client's groups are its classes. of: the optimizer of the steps, Adam with an L2 penalty by default.
    mode: `optimistic`, or `descent_ascent`, which takes gradients where it is. alpha: α.
    lookahead: `advance`: the state of `of` moves with each of the two steps; `peek`: with the second alone.
    pi_lr: η >= 0. pi_decay: τ >= 0. prior: π̂ > 0, uniform by default; it is normalised. start: π_0, the prior by
    default.
    loss_scale: s; None: c/B, B samples in a batch. pi_loss_scale: s in h, as `loss_scale` by default.
    pi_update: `exponentiated`, or `projected`: π ← Proj(π + η (h - τ ∇ KL(π ‖ π̂))) onto the simplex with no weight
    above `cap`. temperature: the softmax is of its argument divided by it. log_eps: log(π + log_eps) in U.

    *Differences from the release*: log π is kept, so no weight underflows (`log_eps` = 1.2e-7 is the release); the eps
    of Adam is that of `of` alone. The projected form is a reconstruction. No claim of convergence is made: a review
    of the paper disputes its proof.
    """

    groups: Annotated[int, pydantic.Field(ge=1)]
    of: Inner = ADAM
    mode: Literal["optimistic", "descent_ascent"] = "optimistic"
    alpha: float = 1.0
    lookahead: Literal["advance", "peek"] = "advance"
    pi_lr: Scalar = 1e-3
    pi_decay: Scalar = 1e-2
    prior: Weights | None = None
    start: Weights | None = None
    loss_scale: Positive | None = None
    pi_loss_scale: Positive | None = None
    pi_update: Literal["exponentiated", "projected"] = "exponentiated"
    cap: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    temperature: Positive = 1.0
    log_eps: Annotated[float, pydantic.Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, weights in (("prior", self.prior), ("start", self.start)):
            if weights is not None and len(weights) != self.groups:
                raise ValueError(f"{name} needs a weight for each of the {self.groups} groups; it has {len(weights)}")
        if self.pi_update == "projected" and self.cap * self.groups < 1.0:
            raise ValueError(f"{self.groups} weights of at most cap = {self.cap} do not sum to 1; raise cap")
        if asks(self.of) or hasattr(self.of, "ahead"):
            raise ValueError(
                f"of = {type(self.of).__name__} asks for more than a gradient, and so does also; take another"
            )

    @property
    def asks(self) -> frozenset[str]:
        """The sums of losses by group, of weighted samples."""
        return frozenset({"group_loss"})

    def init(self, params: Named) -> State:
        """`step`, `of`: the optimizer's, `g` and `h`: the last ones, `log_pi` `[c]`."""
        zero = first_step(params)
        weights = torch.tensor(self.start or self.prior or (1.0,) * self.groups, dtype=zero.dtype, device=zero.device)
        return {
            "step": zero,
            "of": self.of.init(params),
            "g": {name: torch.zeros_like(x) for name, x in params.items()},
            "h": torch.zeros_like(weights),
            "log_pi": (weights / weights.sum()).log(),
        }

    def ahead(self, state: State, params: Named, hyper: Named) -> Named:
        """x', where the losses are wanted."""
        return params if self.mode == "descent_ascent" else self._stale(state, params, hyper)[0]

    def weights(self, state: State, hyper: Named, count: Tensor) -> Tensor:
        """s π' `[c]`, with which samples of each group enter a sum over `count` of them."""
        log_pi = state["log_pi"]
        if self.mode == "optimistic":
            log_pi = torch.where(state["step"] > 0, self._turned(log_pi, state["h"], hyper), log_pi)
        weights: Tensor = log_pi.exp() * self._scale(self.loss_scale, count).to(log_pi.dtype)
        return weights

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, group_loss: Tensor, count: Tensor
    ) -> tuple[Named, State]:
        """One step; grads: of the weighted sum at `ahead`; group_loss `[c]`: Σ l_i by group, of `count` samples.

        `hyper` holds pi_lr and pi_decay, and those of `of`.
        """
        inner = state["of"]
        if self.mode == "optimistic" and self.lookahead == "advance":
            inner = self._stale(state, params, hyper)[1]
        new, after = self.of.update(grads, inner, params, within(hyper, "of"))
        h = group_loss * self._scale(self.pi_loss_scale or self.loss_scale, count).to(group_loss.dtype)
        h = h.to(state["h"].dtype)
        log_pi = self._turned(state["log_pi"], h, hyper)
        return new, {"step": state["step"] + 1, "of": after, "g": grads, "h": h, "log_pi": log_pi}

    def _stale(self, state: State, params: Named, hyper: Named) -> tuple[Named, State]:
        """A step along the last gradient, and the optimizer's state after it; nothing moves before the first one."""
        before = {name: self.alpha * g for name, g in state["g"].items()}
        new, after = self.of.update(before, state["of"], params, within(hyper, "of"))
        begun: Any = state["step"] > 0
        point = {name: torch.where(begun, new[name], x) for name, x in params.items()}
        return point, pytree.tree_map(lambda a, b: torch.where(begun, a, b), after, state["of"])

    def _turned(self, log_pi: Tensor, h: Tensor, hyper: Named) -> Tensor:
        """log U."""
        numbers = at_params({name: hyper[name] for name in ("pi_lr", "pi_decay")}, {"pi": log_pi})
        eta, tau = numbers["pi_lr"], numbers["pi_decay"]
        prior = torch.tensor(self.prior or (1.0,) * self.groups, dtype=log_pi.dtype, device=log_pi.device)
        log_prior = (prior / prior.sum()).log()
        if self.pi_update == "projected":
            pi = log_pi.exp()
            slope = pi.clamp(min=LEAST).log() - log_prior + 1.0
            return projection(pi + eta * (h - tau * slope), self.cap).log()
        if self.log_eps:
            log_pi = (log_pi.exp() + self.log_eps).log()
        return torch.log_softmax((log_pi + eta * (tau * log_prior + h)) / ((1 + eta * tau) * self.temperature), dim=-1)

    def _scale(self, given: float | None, count: Tensor) -> Tensor:
        scale: Tensor = self.groups / count.clamp(min=1.0) if given is None else torch.full_like(count, given)
        return scale
