"""FLTrust: updates count as far as they point where the server's own update points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.aggregators._cosines import cosines
from fedopt.aggregators._rows import lengths
from fedopt.aggregators._trust import combined
from fedopt.registry import declare
from fedopt.types import Info


@declare(
    reference="Cao, Fang, Liu, Gong 2021, 'FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping',"
    " algorithm 2",
    scope="vector",
    exceptions={"translation": "updates are weighed by their direction and rescaled to one length"},
)
@dataclass(frozen=True)
class fltrust:
    """The mean of the updates, rescaled to the length of the server's own and weighed by the cosine with it.

        TSᵢ = max(cos(Δ₀, Δᵢ), 0)
        delta = Σᵢ TSᵢ (‖Δ₀‖/‖Δᵢ‖) Δᵢ / Σⱼ TSⱼ

    Δ₀ is what the server's own training on its trial samples answers to the same request (`reference`). The result is
    never longer than Δ₀. An update of zeros has no direction and is not trusted.

    Differences from the paper: where no update points along Δ₀, its formula is 0/0, and here nothing moves. The whole
    vector of parameters makes up the directions, buffers do not.
    """

    def init(self, n: int) -> tuple[()]:
        return ()

    def apply(self, updates: Tensor, state: tuple[()], *, reference: Tensor) -> tuple[Tensor, tuple[()], Info]:
        """`updates [n, d]`, the server's own update `[d]` -> delta `[d]`; info has TSᵢ / Σⱼ TSⱼ as `trust [n]`."""
        own = reference[None]
        scores = cosines(updates, own)[:, 0].clamp(min=0.0)
        total = scores.sum()
        if not bool(total > 0):
            reason = f"none of {updates.shape[0]} updates points along the server's own"
            return updates.new_zeros(updates.shape[1]), state, {"trust": scores, "kept_model": reason}
        trust = scores / total
        # a row of zeros has no trust, and 0 · ∞ is not to touch the others
        stretch = torch.where(trust > 0, lengths(own) / lengths(updates), 0.0)
        return combined(trust * stretch, updates), state, {"trust": trust}
