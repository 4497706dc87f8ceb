"""FoolsGold: clients whose histories of updates are alike count for little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt.aggregators._cosines import cosines
from fedopt.aggregators._trust import combined
from fedopt.registry import declare
from fedopt.types import Info

_ROUNDING = 1e-9  # cosines of equal histories differ from 1 by less, and those of honest clients by more


class Histories(NamedTuple):
    """State: sums of all updates by client id, `[N, d]`; `[N, 0]` before the first round."""

    sums: Tensor


@declare(
    reference="Fung, Yoon, Beschastnikh 2020, 'The Limitations of Federated Learning in Sybil Settings', algorithm 1",
    scope="vector",
    exceptions={"translation": "histories are compared by their directions"},
)
@dataclass(frozen=True)
class foolsgold:
    """The mean of the updates, weighed by how much a client's history differs from the one most like it.

        Hᵢ <- Hᵢ + xᵢ,    sᵢⱼ = cos(Hᵢ, Hⱼ),    vᵢ = max(0, maxⱼ≠ᵢ sᵢⱼ)
        sᵢⱼ <- sᵢⱼ vᵢ / vⱼ where vⱼ > vᵢ                     pardoning
        αᵢ = 1 - max(0, maxⱼ≠ᵢ sᵢⱼ),    αᵢ <- αᵢ / maxⱼ αⱼ
        αᵢ <- κ (ln(αᵢ / (1 - αᵢ)) + 1/2), cut off to [0, 1]
        delta = Σᵢ αᵢ xᵢ / Σⱼ αⱼ

    No number of attackers is asked for: those who pull in one direction give themselves away, and honest clients are
    taken to differ. Where all histories are alike, nothing moves. Of a part of the clients, the histories of those who
    are there grow, and these are compared.

    kappa: κ, the confidence; a larger one brings weights closer to 0 and 1.
    normalise: False gives the paper's sum Σᵢ αᵢ xᵢ, which grows with the number of clients.

    Differences from the paper: divided by the sum of the weights, unless `normalise` is off; all coordinates count
    alike in the cosines, where it may pick those that the model finds important. Negative cosines count as 0.
    """

    kappa: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    normalise: bool = True

    def init(self, n: int) -> Histories:
        return Histories(torch.zeros(n, 0))

    def apply(self, updates: Tensor, state: Histories, *, clients: Tensor) -> tuple[Tensor, Histories, Info]:
        """`updates [n, d]`, ids of the rows `[n]` -> delta `[d]`; info has the weights as `trust [n]`."""
        n, d = updates.shape
        sums = state.sums if state.sums.shape[1] else updates.new_zeros(state.sums.shape[0], d)
        rows = sums.index_select(0, clients) + updates
        state = Histories(sums.index_copy(0, clients, rows))
        alpha = _difference(rows)
        top = alpha.max()
        if not bool(top > 0):
            reason = f"the histories of all {n} clients are alike"
            return updates.new_zeros(d), state, {"trust": alpha, "kept_model": reason}
        # the logit of 1 is infinite, and is cut off like every other one beyond [0, 1]
        trust = (self.kappa * (torch.logit(alpha / top) + 0.5)).clamp(0.0, 1.0)
        if self.normalise:
            trust = trust / trust.sum()
        return combined(trust, updates), state, {"trust": trust}


def _difference(rows: Tensor) -> Tensor:
    """α `[n]` before it is divided by the largest: 1 for a history like no other, 0 for one that has a twin."""
    alike = cosines(rows, rows).clamp(min=0.0).fill_diagonal_(0.0)
    nearest = alike.amax(dim=1)
    pardon = torch.where(nearest > nearest[:, None], nearest[:, None] / nearest, 1.0)
    alpha = 1.0 - (alike * pardon).amax(dim=1)
    # a history that overflowed is like no other, and deserves no trust for it
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1)
    return torch.where(~torch.isfinite(largest) | (alpha < _ROUNDING), 0.0, alpha)
