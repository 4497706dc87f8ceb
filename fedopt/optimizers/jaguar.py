"""JAGUAR: coordinate momentum from function values, with sign or orthogonal steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import at_params, first_step
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.zero_order import Function, slope
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State

Share = Annotated[float, pydantic.Field(gt=0, le=1)]


@declare(
    reference="Petrov et al. 2025, Leveraging Coordinate Momentum in SignSGD and Muon: Memory-Optimized Zero-Order LLM "
    "Fine-Tuning, arXiv 2506.04430, algorithms 1 and 2"
)
@dataclass(frozen=True)
class jaguar:
    """One finite difference a step, over a random set S of entries; a momentum that remembers all of them.

        ρ = (f(x + τ 1_S) - f(x - τ 1_S)) / (2 τ);  m_S ← β m_S + (1 - β) ρ, the rest of m stays
        x ← x - η sign(m), or for matrices x ← x - η NS(m)

    lr: η. beta: β in [0, 1). tau: τ > 0.
    step: `sign`, or `muon`: matrices, seen as `[first, all others]`, are made orthogonal by an iteration of Newton and
    Schulz (ns, ns_steps), other tensors have signs.
    block: S; `entry`: one entry of all (the algorithms of the paper); `block`: in every tensor at once, `share` of the
    rows times `share` of the columns of a matrix, `share` of the entries of another one, each at least one.
    memory: `persistent`, as above; `released`: m begins as 0 in every step, as in the authors' code, so that S alone
    moves, and β says nothing.

    *Differences from the paper*: `block` is the default, a generalisation; the last iterate, not a random one.
    """

    lr: Scalar = 1e-4
    beta: Scalar = 0.9
    tau: Scalar = 1e-3
    step: Literal["sign", "muon"] = "sign"
    block: Literal["block", "entry"] = "block"
    share: Share = 0.1
    memory: Literal["persistent", "released"] = "persistent"
    ns: Literal["quintic", "cubic", "svd"] = "cubic"
    ns_steps: Annotated[int, pydantic.Field(ge=1)] = 10

    @property
    def asks(self) -> frozenset[str]:
        """The function, in place of its gradient."""
        return frozenset({"function"})

    def init(self, params: Named) -> State:
        """`evaluations`, and `m` where it persists."""
        state: dict[str, object] = {"evaluations": first_step(params)}
        if self.memory == "persistent":
            state["m"] = {name: torch.zeros_like(x) for name, x in params.items()}
        return state

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, function: Function, key: Tensor
    ) -> tuple[Named, State]:
        """One step; grads is empty. function: the loss; key: of this step. `hyper` holds lr, beta and tau."""
        h, chosen = at_params(hyper, params), self.chosen(key, params)
        rho = slope(function, params, h["tau"], chosen)
        before = state.get("m") or {name: torch.zeros_like(x) for name, x in params.items()}
        m = {
            name: torch.where(chosen[name] > 0, h["beta"] * old + (1 - h["beta"]) * rho, old)
            for name, old in before.items()
        }
        steps = self._steps(m)
        new = {name: x - h["lr"] * steps[name] for name, x in params.items()}
        kept = {"m": m} if self.memory == "persistent" else {}
        return new, {"evaluations": state["evaluations"] + 2, **kept}

    def chosen(self, key: Tensor, params: Named) -> Named:
        """1_S."""
        if self.block == "block":
            return {name: self._block(keys.fold(key, name), x) for name, x in params.items()}
        numel, at, found = sum(x.numel() for x in params.values()), 0, {}
        one = (keys.uniform(key, dtype=torch.float64) * numel).long()
        for name, x in params.items():
            place = torch.arange(at, at + x.numel(), device=x.device).reshape(x.shape)
            found[name] = (place == one).to(x.dtype)
            at += x.numel()
        return found

    def _block(self, key: Tensor, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], -1) if x.dim() > 1 else x.reshape(1, -1)
        sides = []
        for side, size in enumerate(flat.shape):
            some = max(1, int(self.share * size)) if side or x.dim() > 1 else 1
            rank = keys.permutation(keys.fold(key, side), size)
            sides.append((rank < some).to(x.dtype))
        return (sides[0][:, None] * sides[1][None, :]).reshape(x.shape)

    def _steps(self, m: Named) -> Named:
        steps = {name: x.sign() for name, x in m.items()}
        matrices = [name for name, x in m.items() if x.dim() > 1] if self.step == "muon" else []
        polar = spectral(self.ns, self.ns_steps).toward([m[name].reshape(m[name].shape[0], -1) for name in matrices])
        return {**steps, **{name: t.reshape(m[name].shape) for name, t in zip(matrices, polar, strict=True)}}
