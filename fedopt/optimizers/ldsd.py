"""LDSD: the best of several directions, whose distribution is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.optimizers import Inner, asks, at_params, first_step, within
from fedopt.optimizers.directions.gaussian import like
from fedopt.optimizers.zero_order import SGD, Function, along
from fedopt.registry import declare
from fedopt.schedules import Scalar
from fedopt.types import Named, State


@declare(
    reference="Parfenov et al. 2026, Zero-Order Optimization for LLM Fine-Tuning via Learnable Direction Sampling, "
    "arXiv 2602.13659 (ZO-LDSD)",
    examples=({"of": {"name": "sgd", "lr": 0.05}},),
)
@dataclass(frozen=True)
class ldsd:
    """Steps of another optimizer along the best of K directions from N(μ, σ² I), and a policy gradient for μ.

        v_k = μ + σ ε_k,  F_k = f(x + τ v_k),  k* = argmin F_k
        g = (F_k* - f(x - τ v_k*)) / (2 τ) v_k*
        A_k = F_k - mean_(j ≠ k) F_j;  μ ← μ - (μ_lr / τ) (1 / (K σ²)) Σ_k A_k (v_k - μ)

    The step of μ has the mean -μ_lr ∇ f(x + τ v).

    of: the optimizer (sgd with momentum, adamm, or signum for the sign version). tau, sigma, candidates: τ, σ, K.
    mu_lr: as above; with mu_lr_units = "released" μ_lr / τ is mu_lr itself.
    learn_mu: False is the control, the best of K with μ = 0. baseline: of A_k; `mean`: the mean of all F, which shrinks
    the step of μ by (K - 1) / K. reevaluate: f(x + τ v_k*) is asked for again, K + 2 evaluations in place of K + 1.
    layers: of the JAGUAR version; directions are 0 but in this share of the tensors.

    *Differences from the release*: v_k in the step of μ are those that were evaluated (two of its three versions draw
    others); tensors of one shape have numbers of their own; with `layers` the same tensors are looked at by all K, and
    the optimizer's state moves in all.
    """

    of: Inner = SGD
    tau: Scalar = 1e-3
    sigma: Annotated[float, pydantic.Field(gt=0)] = 1.0
    candidates: Annotated[int, pydantic.Field(ge=1)] = 5
    mu_lr: Scalar = 1e-3
    mu_lr_units: Literal["gradient", "released"] = "gradient"
    learn_mu: bool = True
    baseline: Literal["others", "mean"] = "others"
    reevaluate: bool = False
    layers: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if asks(self.of) or hasattr(self.of, "ahead"):
            raise ValueError(f"of = {type(self.of).__name__} asks for more than a gradient; take another")

    @property
    def asks(self) -> frozenset[str]:
        """The function, in place of its gradient."""
        return frozenset({"function"})

    def init(self, params: Named) -> State:
        """`of`: the optimizer's; `evaluations`; `mu`, where it is learnt."""
        state = {"of": self.of.init(params), "evaluations": first_step(params)}
        return state | ({"mu": {n: torch.zeros_like(x) for n, x in params.items()}} if self.learn_mu else {})

    def update(
        self, grads: Named, state: State, params: Named, hyper: Named, *, function: Function, key: Tensor
    ) -> tuple[Named, State]:
        """One step; grads is empty. function: the loss; key: of this step. `hyper` holds tau, mu_lr, those of `of`."""
        h = at_params({name: hyper[name] for name in ("tau", "mu_lr")}, params)
        tau, words = h["tau"], [keys.fold(key, k) for k in range(self.candidates)]
        seen = self._seen(key, params)
        values = torch.stack([function(along(params, tau, self._drawn(word, state, params, seen))) for word in words])
        first = values.argmin()
        v = self._drawn(torch.stack(words)[first], state, params, seen)
        ahead = function(along(params, tau, v)) if self.reevaluate else values.amin()
        rho = (ahead - function(along(params, -tau, v))) / (2.0 * tau)
        new, inner = self.of.update({n: rho * x for n, x in v.items()}, state["of"], params, within(hyper, "of"))
        spent = self.candidates + (2 if self.reevaluate else 1)
        after = {"of": inner, "evaluations": state["evaluations"] + spent}
        if self.learn_mu:
            after["mu"] = self._turned(values, words, state, params, seen, h)
        return new, after

    def policy_gradient(self, values: Tensor, words: list[Tensor], state: State, params: Named, seen: Named) -> Named:
        """(1 / (K σ²)) Σ_k A_k (v_k - μ), whose mean is τ E ∇ f(x + τ v)."""
        k = self.candidates
        gains = values - values.mean()
        if self.baseline == "others" and k > 1:
            gains = gains * (k / (k - 1.0))
        total = {name: torch.zeros_like(x) for name, x in params.items()}
        for gain, word in zip(gains.unbind(), words, strict=True):
            noise = {name: x * seen[name] for name, x in like(word, params).items()}  # (v_k - μ) / σ
            total = along(total, gain / (k * self.sigma), noise)
        return total

    def _turned(self, values: Tensor, words: list[Tensor], state: State, params: Named, seen: Named, h: Named) -> Named:
        rate = h["mu_lr"] if self.mu_lr_units == "released" else h["mu_lr"] / h["tau"]
        return along(state["mu"], -rate, self.policy_gradient(values, words, state, params, seen))

    def _seen(self, key: Tensor, params: Named) -> Named:
        """1 for the tensors that are looked at."""
        kept = max(1, round(self.layers * len(params)))
        rank = keys.permutation(keys.fold(key, "layers"), len(params))
        return {name: (rank[i] < kept).to(x.dtype) for i, (name, x) in enumerate(params.items())}

    def _drawn(self, word: Tensor, state: State, params: Named, seen: Named) -> Named:
        noise = like(word, params)
        mu = state.get("mu")
        return {
            name: seen[name] * (self.sigma * x if mu is None else mu[name] + self.sigma * x)
            for name, x in noise.items()
        }
