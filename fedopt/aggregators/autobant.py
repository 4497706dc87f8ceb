"""AutoBANT: the weights of the clients are found by descent on the trial loss of the mixture itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators import _trust
from fedopt.aggregators._scaling import Scaling, rescaled
from fedopt.registry import declare
from fedopt.types import Info, Trial

Share = Annotated[float, pydantic.Field(gt=0.0, le=1.0)]
Count = Annotated[int, pydantic.Field(ge=1)]


class Found(NamedTuple):
    """State: the last weights and those of the lowest trial loss so far, by client id `[N]`; the preconditioner."""

    last: Tensor
    best: Tensor
    lowest: float
    scale: Tensor
    round: int


@declare(
    reference="Molodtsov, Medyakov, Skorik, Khachaturov, Tigranyan, Aletov, Avetisyan, Takac, Beznosikov 2025, 'Bant:"
    " Byzantine Antidote via Trial Function and Trust Scores', arXiv 2505.07614, algorithm 2 and the authors' program",
    scope="vector",
    examples=(
        {},
        {"mix": 0.05, "renormalise": False, "select": "batch", "guard": False},
        {"batch": None, "passes": 20, "start": "previous", "guard": False},
        {"start": "best", "cut": 0.0, "guard": False},
    ),
)
@dataclass(frozen=True)
class autobant:
    """Weights on the simplex by exponentiated gradient steps on the trial loss of x + Σ wᵢ Δᵢ.

        q ∝ w exp(-η ∂F/∂w),    ∂F/∂wᵢ = ⟨∇F(x + Σⱼ wⱼ Δⱼ), Δᵢ⟩,    w <- (1 - mix) w + mix q
        wᵢ <- 0 where wᵢ < cut/n, then w <- w / Σ w,    delta = Σᵢ wᵢ Δᵢ

    The gradient by w is one backward pass at the mixture and n products, exact for every network.

    passes, batch: the steps walk over the trial set so often, in batches of this size and in its order; ⌈N / batch⌉ ·
        passes steps. `batch = None` takes all of it at each step.
    eta: η.
    mix: how far a step goes towards q; 1 is the full step.
    cut: weights below this share of 1/n become 0.
    renormalise: divide by the sum after the cut.
    select: which w is kept: "pass", the lowest loss on the whole trial set at the end of a pass, or "batch", the lowest
        loss of a mini-batch met on the way.
    guard: the best single update takes the place of the mixture where its trial loss is lower. With it
        F(x + delta) <= minᵢ F(x + Δᵢ) in every round, the bound of the exact inner solution.
    start: "uniform" weights in each round, those of the round before, or the best ones met so far.
    scaling: as in `bant`.

    Differences from the paper: it solves the inner problem to a given accuracy. The authors' program has mix = 0.05,
    select = "batch", renormalise off and no guard; with that mix a weight shrinks by 5 % a step at the most, and
    attackers in the majority keep a part. The program mixes the outputs of layers, which is the same function up to
    batch normalisation; here batch normalisation takes the statistics of the trial batch.
    """

    passes: Count = 5
    batch: Count | None = 32
    eta: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    mix: Share = 1.0
    cut: Annotated[float, pydantic.Field(ge=0.0, le=1.0)] = 0.5
    renormalise: bool = True
    select: Literal["pass", "batch"] = "pass"
    guard: bool = True
    start: Literal["uniform", "previous", "best"] = "uniform"
    scaling: Scaling = "none"

    def init(self, n: int) -> Found:
        return Found(_trust.first(n), _trust.first(n), float("inf"), torch.zeros(0), 0)

    def apply(self, updates: Tensor, state: Found, *, clients: Tensor, trial: Trial) -> tuple[Tensor, Found, Info]:
        """`updates [n, d]`, ids of the rows `[n]` -> delta `[d]`; info has the weights as `trust [n]`."""
        n = updates.shape[0]
        updates, scale = rescaled(updates, state.scale, state.round, trial, self.scaling)
        alone = trial.loss(updates).to(torch.float64)
        usable = torch.isfinite(alone)
        rows, ids = updates[usable], clients[usable]
        if not bool(usable.any()):
            none = {"trust": alone.new_zeros(n), "kept_model": f"none of {n} updates has a finite trial loss"}
            return updates.new_zeros(updates.shape[1]), state._replace(scale=scale, round=state.round + 1), none
        begin = {"uniform": _trust.first(state.last.numel()), "previous": state.last, "best": state.best}[self.start]
        weights = self._descended(rows, _trust.shares(begin[ids]), trial)
        weights = torch.where(weights < self.cut / n, 0.0, weights)
        if self.renormalise:
            weights = _trust.shares(weights)
        mixed = float(trial.loss(_trust.combined(weights, rows)[None])[0])
        single = int(alone[usable].argmin())
        if self.guard and not mixed <= float(alone[usable][single]):
            weights = torch.zeros_like(weights).index_fill(0, torch.tensor([single]), 1.0)
            mixed = float(alone[usable][single])
        trust = alone.new_zeros(n).masked_scatter(usable, weights)
        last = _trust.moved(state.last, clients, _trust.shares(trust), 1.0)
        best, lowest = (last, mixed) if mixed < state.lowest else (state.best, state.lowest)
        new = Found(last, best, lowest, scale, state.round + 1)
        return _trust.combined(weights, rows), new, {"trial_loss": mixed, "trust": trust}

    def _descended(self, updates: Tensor, weights: Tensor, trial: Trial) -> Tensor:
        """The weights `[n]` of the lowest loss on the way."""
        order = torch.arange(trial.size)
        batches = order.split(self.batch or trial.size)
        kept, lowest = weights, float("inf")
        for _ in range(self.passes):
            for rows in batches:
                delta = _trust.combined(weights, updates)
                gradient = updates @ trial.grad(delta, rows)
                if not bool(torch.isfinite(gradient).all()):
                    return kept
                if self.select == "batch":
                    kept, lowest = _lower(weights, kept, lowest, float(trial.loss(delta[None], rows)[0]))
                # log w may be -inf, where a client was given up before; the largest exponent is taken out
                power = weights.log() - self.eta * gradient.to(torch.float64)
                q = torch.softmax(power, dim=0)
                weights = (1.0 - self.mix) * weights + self.mix * q
            if self.select == "pass":
                loss = float(trial.loss(_trust.combined(weights, updates)[None])[0])
                kept, lowest = _lower(weights, kept, lowest, loss)
        return kept


def _lower(weights: Tensor, kept: Tensor, lowest: float, loss: float) -> tuple[Tensor, float]:
    return (weights, loss) if loss < lowest else (kept, lowest)
