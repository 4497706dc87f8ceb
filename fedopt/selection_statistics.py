"""How a selector spreads its choice over clients, from draws in a given state.

For a selector that takes m of N clients, client i with probability π_i(m):

    p_i(m) = π_i(m) / m                             shares, Σ p_i = 1
    ESS(m) = 1 / Σ_i p_i²                           how many clients of equal shares spread as much
    Cap(I, m) = Σ_{i in I} p_i(m)                   what of the choice falls into a pool I
    D(I, k) = Σ_i (ψ_i(I, k) / k - p_i(k))²         how far a choice within I is from one among all

with ψ_i(I, k) the probability of client i where k clients are drawn from I, and 0 outside it. So they tell whether a
pool of B < N clients can stand for all of them. For the uniform selector π_i = m / N, ESS = N, Cap = |I| / N and
D = 1 / |I| - 1 / N.

Reference: the statistics of the code that accompanies Skorik et al. 2025, arXiv 2508.13803 (ISP); ESS: Kish 1965,
'Survey Sampling'.

Differences from that code: squares of estimated probabilities are on average too large by their variance, which with
200 draws of one client out of 50 makes of Σ p² = 1/50 nearly a quarter more. An estimate of that variance is taken off;
`corrected = False` leaves it in.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedopt import keys
from fedopt.types import FedoptError, State

DRAWS = 200
POOLS = 20
STEP = 5


class Chooser(Protocol):
    """A `Participation`, or a selector by itself."""

    def choose(self, state: State, count: int, pool: Tensor, key: Tensor, /) -> Tensor: ...


class Inclusion(NamedTuple):
    """How often each client was among the chosen."""

    probabilities: Tensor
    """π `[N]`, float64: estimates from `draws` independent draws, by client id."""
    chosen: int
    """m."""
    draws: int
    """R."""

    @property
    def shares(self) -> Tensor:
        """p = π / m `[N]`."""
        return self.probabilities / self.chosen

    @property
    def variances(self) -> Tensor:
        """Unbiased estimates of the variances of the shares `[N]`: π (1 - π) / ((R - 1) m²)."""
        return self.probabilities * (1.0 - self.probabilities) / ((self.draws - 1) * self.chosen**2)


class Statistics(NamedTuple):
    """Of a selector, over head-counts m `[a]` and sizes of pools B `[b]`."""

    counts: Tensor
    """Head-counts `[a]`, int64."""
    sizes: Tensor
    """Sizes of pools `[b]`, int64."""
    effective: Tensor
    """ESS(m) `[a]`, float64."""
    captured: Tensor
    """Mean of Cap(I, m) over pools I of each size `[b, a]`, float64."""
    discrepancy: Tensor
    """Mean of D(I, m) over pools I of each size `[b, a]`, float64; NaN where m > B."""


def inclusion(
    chooser: Chooser, state: State, count: int, pool: Tensor, clients: int, key: Tensor, *, draws: int = DRAWS
) -> Inclusion:
    """π_i(m) ≈ (1/R) Σ_r 1[i in C_r], with C_r = choose(state, m, pool, key_r) for keys folded from `key`.

    pool: ids of those who can be chosen `[p]`, increasing. clients: N, how many there are in all.

    The state is the one that is given in every draw, and does not change.

    Raises FedoptError for an empty pool, ids that are not increasing or not below N, more clients than the pool has,
    and fewer than two draws, which say nothing of their variance.
    """
    _check(count, pool, clients, draws)
    words = keys.fold(key, "inclusion", count, torch.arange(draws))
    chosen = torch.cat([chooser.choose(state, count, pool, word) for word in words.unbind()])
    seen = torch.bincount(chosen, minlength=clients).to(torch.float64)
    return Inclusion(seen / draws, count, draws)


def effective_size(found: Inclusion, *, corrected: bool = True) -> float:
    """ESS(m) = 1 / Σ p_i², between 1 and N but for noise; infinite where draws are too few to show any two alike."""
    squares = found.shares.square().sum()
    if corrected:
        squares = squares - found.variances.sum()
    return 1.0 / float(squares) if squares > 0.0 else math.inf


def captured(found: Inclusion, pool: Tensor) -> float:
    """Cap(I, m) = Σ_{i in I} p_i(m) for a pool of ids `[B]`."""
    return float(found.shares[pool].sum())


def discrepancy(inner: Inclusion, outer: Inclusion, *, corrected: bool = True) -> float:
    """D(I, k) = Σ_i (ψ_i(I, k) / k - p_i(k))², with ψ from `inner` and p from `outer`, in draws by different keys.

    Where it is nearly 0, the corrected estimate may be below 0.

    Raises FedoptError where the two are of different head-counts or numbers of clients.
    """
    if (inner.chosen, len(inner.probabilities)) != (outer.chosen, len(outer.probabilities)):
        raise FedoptError(
            f"both have to be of one head-count and one number of clients; {inner.chosen} of"
            f" {len(inner.probabilities)} and {outer.chosen} of {len(outer.probabilities)} were given"
        )
    apart = (inner.shares - outer.shares).square().sum()
    if corrected:
        apart = apart - inner.variances.sum() - outer.variances.sum()
    return float(apart)


def grid(most: int, *, step: int = STEP) -> Tensor:
    """1, 1 + step, ... up to `most`, int64."""
    return torch.arange(1, most + 1, step)


def statistics(
    chooser: Chooser,
    state: State,
    pool: Tensor,
    clients: int,
    key: Tensor,
    *,
    counts: Tensor | None = None,
    sizes: Tensor | None = None,
    draws: int = DRAWS,
    pools: int = POOLS,
    inner_draws: int = DRAWS,
) -> Statistics:
    """ESS, Cap and D of a selector in a state, over head-counts and sizes of pools.

    Pools I are drawn by the selector itself, as ISP draws them: B clients of `pool`.

    pool: ids of those who can be chosen `[p]`, increasing. clients: N, how many there are in all.
    counts, sizes: m and B; None: 1, 6, 11, ... up to p.
    draws: R_π, for each π(m). pools: R_b, for each B. inner_draws: T_in, for each ψ(I, m).

    It takes a·R_π + b·R_b·(1 + a·T_in) choices at most, for a head-counts and b sizes.

    Raises FedoptError as `inclusion` does, and for no pools.
    """
    _check(1, pool, clients, min(draws, inner_draws))
    if pools < 1:
        raise FedoptError(f"at least one pool of each size is needed; {pools} was given")
    counts = grid(pool.numel()) if counts is None else counts
    sizes = grid(pool.numel()) if sizes is None else sizes
    outer = [
        inclusion(chooser, state, m, pool, clients, keys.fold(key, "among all"), draws=draws) for m in counts.tolist()
    ]
    shape = (sizes.numel(), counts.numel())
    inside, apart = torch.zeros(shape, dtype=torch.float64), torch.full(shape, torch.nan, dtype=torch.float64)
    for row, size in enumerate(sizes.tolist()):
        _check(size, pool, clients, draws)
        words = keys.fold(key, "pools", size, torch.arange(pools)).unbind()
        drawn = [chooser.choose(state, size, pool, word) for word in words]
        for column, found in enumerate(outer):
            inside[row, column] = sum(captured(found, some) for some in drawn) / pools
            if found.chosen > size:
                continue
            apart[row, column] = (
                sum(
                    discrepancy(inclusion(chooser, state, found.chosen, some, clients, word, draws=inner_draws), found)
                    for some, word in zip(drawn, words, strict=True)
                )
                / pools
            )
    effective = torch.tensor([effective_size(found) for found in outer], dtype=torch.float64)
    return Statistics(counts, sizes, effective, inside, apart)


def _check(count: int, pool: Tensor, clients: int, draws: int) -> None:
    p = pool.numel()
    if not p:
        raise FedoptError("the pool is empty; give the ids of one client at least")
    if not (bool((pool[1:] > pool[:-1]).all()) and int(pool[0]) >= 0 and int(pool[-1]) < clients):
        raise FedoptError(f"a pool of increasing ids from 0 to {clients - 1} is needed; {pool.tolist()} was given")
    if not 1 <= count <= p:
        raise FedoptError(f"{count} clients are asked for and the pool has {p}; give a count of 1 ... {p}")
    if draws < 2:
        raise FedoptError(f"at least 2 draws are needed, for their variance; {draws} was given")
