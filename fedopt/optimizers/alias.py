"""ALIAS: sign descent that finds its step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.optimizers import at_params, first_step
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

NotNegative = Annotated[float, pydantic.Field(ge=0)]


def step_length(d: Tensor, h: Tensor, lr: Tensor | float, cold: float, clamp: float | None) -> Tensor:
    """γ = lr √(d / h), and lr · cold where h is 0; at most `clamp`."""
    root = (d / torch.where(h > 0, h, torch.ones_like(h))).sqrt()
    gamma = lr * torch.where(h > 0, root, torch.full_like(root, cold))
    return gamma if clamp is None else gamma.clamp(max=clamp)


@declare(reference="Medyakov et al. 2025, Sign-SGD via Parameter-Free Optimization, arXiv 2506.03725 (ALIAS)")
@dataclass(frozen=True)
class alias:
    """Signs of gradients, with a step from the smoothness and the descent that were seen on the way.

        h_t = h_(t-1) + ‖g_t - g_(t-1)‖₁ / ‖x_t - x_(t-1)‖_∞,  h_0 = eta_0
        option "I":   d_t = max(d_(t-1), Σ_(i<t) γ_i ⟨g_(i+1), sign g_i⟩)
        option "II":  d = f(x_0) - f_low
        γ_t = lr √(d_t / h_t);  x ← (1 - γ_t λ) x - γ_t sign(g_t)

    Norms are over all tensors together.

    lr: a factor of 1 that a schedule may change. weight_decay: λ.
    option: I needs d_0 below f(x_0) - f*; II the first loss, and f_low below all values of f.
    eta_0: first h; where it is 0, the first step is cold. d_0: first d of option I. f_low: as above.
    clamp: the largest γ; None: no limit. momentum: β of m ← β m + (1 - β) g, whose sign is the direction; h and d are
        of gradients. evidence: of option I with momentum: the direction, or the sign of the last gradient.
    same_sample: g_(t-1) is the gradient of the newer batch at the older point, one more gradient in a step; False: the
        gradient that was had there, of another batch, so that h contains the noise and steps are shorter.
    norm_swap: h_t = h_(t-1) + max(max g_t - min g_(t-1), max g_(t-1) - min g_t) / ‖x_t - x_(t-1)‖₁: signs and two
        numbers are kept in place of a gradient.
    per_tensor: norms, h, d and γ for each tensor by itself; the theory does not cover it.
    true_distance: the point before is kept, and lengths are to it; False: the sign part of the step, which is all of it
        without decay.
    update_gap: h and γ are renewed once in so many steps, from the differences since the last time; keeps that point.
    warmup_steps, warmup_lr: the first steps have γ = lr · warmup_lr, and h and d grow all the same.

    *Differences from the paper*: steps without a sign that is
    not 0 add nothing to h. How the momentum's evidence is taken was not available.
    """

    lr: Scalar = 1.0
    weight_decay: Scalar = 0.0
    option: Literal["I", "II"] = "II"
    eta_0: NotNegative = 100.0
    d_0: Annotated[float, pydantic.Field(gt=0)] = 1e-6
    f_low: float = 0.0
    cold: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    clamp: Annotated[float, pydantic.Field(gt=0)] | None = None
    momentum: Scalar = 0.0
    evidence: Literal["direction", "grad_sign"] = "direction"
    same_sample: bool = True
    norm_swap: bool = False
    per_tensor: bool = False
    true_distance: bool = False
    update_gap: Annotated[int, pydantic.Field(ge=1)] = 1
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] = 0
    warmup_lr: Annotated[float, pydantic.Field(gt=0)] = 1e-3

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.norm_swap and self.same_sample:
            raise ValueError("norm_swap keeps no gradient to compare with; set same_sample = false with it")

    @property
    def asks(self) -> frozenset[str]:
        """The first loss for option II, and the gradient of the same batch at the point before."""
        return frozenset(["value"] if self.option == "II" else []) | frozenset(["before"] if self.same_sample else [])

    def init(self, params: Named) -> State:
        """`sign`, the last direction; `numbers` by group of tensors: h, d, what d was made of, γ; what options keep."""
        zero, zeros = first_step(params), {name: torch.zeros_like(x) for name, x in params.items()}
        first = {"h": zero + self.eta_0, "d": zero + self.d_0, "seen": zero, "gamma": zero}
        if self.norm_swap:
            first |= {"high": zero, "low": zero}
        state: dict[str, Any] = {"step": zero, "sign": zeros, "numbers": {g: dict(first) for g in self._groups(params)}}
        if not self.same_sample and not self.norm_swap:
            state["g"] = zeros
        if self._holds:
            state["x"] = {name: x.clone() for name, x in params.items()}
        if self.momentum != 0:
            state["m"] = zeros
            if self.evidence == "grad_sign":
                state["grad_sign"] = zeros
        return state

    def behind(self, state: State, params: Named) -> Named:
        """The point that the last difference was taken from; up to decay, where it is not kept."""
        if self._holds:
            return {name: x.clone() for name, x in state["x"].items()}
        gamma = self._spread(params, {g: n["gamma"] for g, n in state["numbers"].items()})
        return {name: x + gamma[name] * state["sign"][name] for name, x in params.items()}

    def update(
        self,
        grads: Named,
        state: State,
        params: Named,
        hyper: Named,
        *,
        value: Tensor | None = None,
        before: Named | None = None,
    ) -> tuple[Named, State]:
        """One step; `hyper` holds lr, weight_decay and momentum. value: the loss; before: gradients at `behind`."""
        h, later = at_params(hyper, params), state["step"] > 0
        due = state["step"] % self.update_gap == 0
        direction = grads
        after: dict[str, Any] = {}
        if self.momentum != 0:
            beta = h["momentum"]
            direction = {name: beta * m + (1 - beta) * grads[name] for name, m in state["m"].items()}
            after["m"] = direction
            if self.evidence == "grad_sign":
                after["grad_sign"] = {name: g.sign() for name, g in grads.items()}
        signs = {name: u.sign() for name, u in direction.items()}
        clue = state["grad_sign"] if self.momentum != 0 and self.evidence == "grad_sign" else state["sign"]
        old = before if before is not None else state.get("g")
        numbers = {}
        for group, names in self._groups(params).items():
            kept = state["numbers"][group]
            g, moved = _joined(grads, names), _joined(state["sign"], names)
            away = kept["gamma"] * moved
            if self._holds:
                away = _joined(params, names) - _joined(state["x"], names)
            new = {}
            if self.norm_swap:
                high, low, length = g.amax(), g.amin(), away.abs().sum()
                change = torch.maximum(high - kept["low"], kept["high"] - low)
                new = {
                    "high": torch.where(due, high, kept["high"]),
                    "low": torch.where(due, low, kept["low"]),
                }
            else:
                assert old is not None
                change, length = (g - _joined(old, names)).abs().sum(), away.abs().amax()
            counts = later & (length > 0) & due
            rise = torch.where(counts, change / torch.where(counts, length, torch.ones_like(length)), length * 0)
            smooth = kept["h"] + rise
            if self.option == "I":
                seen = kept["seen"] + torch.where(later, kept["gamma"] * (g * _joined(clue, names)).sum(), length * 0)
                d = torch.maximum(kept["d"], seen)
            else:
                assert value is not None
                seen = kept["seen"]
                d = torch.where(later, kept["d"], (value.to(g.dtype) - self.f_low).clamp(min=0.0))
            gamma = torch.where(due, step_length(d, smooth, h["lr"], self.cold, self.clamp), kept["gamma"])
            if self.warmup_steps:
                gamma = torch.where(state["step"] < self.warmup_steps, h["lr"] * self.warmup_lr, gamma)
            numbers[group] = {"h": smooth, "d": d, "seen": seen, "gamma": gamma, **new}
        steps = self._spread(params, {group: n["gamma"] for group, n in numbers.items()})
        moved_to = {
            name: (1 - steps[name] * h["weight_decay"]) * x - steps[name] * signs[name] for name, x in params.items()
        }
        if "g" in state:
            after["g"] = _renewed(due, grads, state["g"])
        if self._holds:
            after["x"] = _renewed(due, params, state["x"])
        return moved_to, {"step": state["step"] + 1, "sign": signs, "numbers": numbers, **after}

    @property
    def _holds(self) -> bool:
        """Whether the point is kept that differences are taken from."""
        return self.true_distance or self.update_gap > 1

    def _groups(self, params: Named) -> dict[str, list[str]]:
        """Names of the tensors that have their numbers in common."""
        return {name: [name] for name in params} if self.per_tensor else {"all": list(params)}

    def _spread(self, params: Named, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The number of each tensor's group."""
        return {name: numbers[group] for group, names in self._groups(params).items() for name in names}


def _joined(named: Named, names: list[str]) -> Tensor:
    return torch.cat([named[name].flatten() for name in names])


def _renewed(due: Tensor, new: Named, old: Named) -> Named:
    return {name: torch.where(due, x, old[name]) for name, x in new.items()}
