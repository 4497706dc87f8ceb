"""Binary features, found in the span of what a party has sent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg import qr
from torch import Tensor

from fedopt.types import FedoptError

MOST = 18
"""The largest rank whose 2^rank patterns are tried."""

BATCH = 1 << 12
"""Patterns that are tried at a time."""

KEPT = 8
"""So many patterns are rounded and compared for each column that is asked for."""


class Found(NamedTuple):
    """Binary columns, the nearest to the span first."""

    columns: Tensor
    """`[m, k]` of 0 and 1."""
    outside: Tensor
    """‖v - P v‖² / ‖v - v̄‖² of each `[k]`, P the projection on the span: 0 for a column that lies in it."""


def binary(sent: Tensor, rank: int, count: int, *, centred: bool = False) -> Found:
    """The `count` binary columns that are nearest to the span of a party's messages.

        sent = A X:   a binary column a of A is in span(sent), where X has the rank d of A

    sent: messages as columns `[m, K]`. rank: d, the number of the party's features, or as much of the span as is to be
    searched; the span is that of the first `rank` left singular vectors. centred: columns were shifted by their means,
    so that the constant is added to the span; a column and 1 - column are then the same guess.

    On `rank` people whose rows of the span are far from dependent (by pivoted QR), a binary column has one of 2^rank
    patterns, and a pattern determines the column: v = U U_B^{-1} p. Those whose v is nearest to 0 and 1 are rounded, by
    which noise that moves entries by less than 1/2 is gone, and of these the nearest to the span remain. Constant
    columns and repetitions are left out. Sums of exclusive columns (a coded category) are binary too.

    Rank is all that hides anything: for the sum over parties it is that of all features together, and the work doubles
    with each of them.

    Reference: Ye, Jiang, Wang, Li, Li 2022, 'Feature Reconstruction Attacks and Countermeasures of DNN Training in
    Vertical Federated Learning', arXiv 2210.06771 (the search for binary columns).

    Differences from the paper: rows are chosen by pivoted QR, and guesses ranked by `outside`.

    Raises FedoptError for a rank above 18, one that the messages do not have, and messages of another shape.
    """
    if sent.dim() != 2 or not 1 <= rank <= min(sent.shape):
        raise FedoptError(f"messages `[people, K]` of rank {rank} at least are needed; {list(sent.shape)} was given")
    if rank > MOST:
        raise FedoptError(f"2^rank patterns are tried, up to rank {MOST}; {rank} was given, search a part of the span")
    span = _span(sent.double(), rank, centred)
    width = span.shape[1]
    rows = torch.as_tensor(qr(span.T.numpy(), mode="r", pivoting=True)[1][:width]).long()
    columns = span @ torch.linalg.inv(span[rows])
    patterns = _nearest(columns, width, KEPT * count, halved=centred)
    guesses = (columns @ patterns.T > 0.5).double()
    if centred:  # of a column and 1 - column, the one that begins with 0
        guesses = torch.where(guesses[0] > 0, 1.0 - guesses, guesses)
    guesses = torch.unique(guesses, dim=1)
    spread = (guesses - guesses.mean(dim=0)).square().sum(dim=0)
    guesses, spread = guesses[:, spread > 0], spread[spread > 0]
    outside = (guesses - span @ (span.T @ guesses)).square().sum(dim=0) / spread
    order = outside.argsort(stable=True)[:count]
    return Found(guesses[:, order], outside[order])


def _span(sent: Tensor, rank: int, centred: bool) -> Tensor:
    """An orthonormal basis `[m, r]`."""
    basis: Tensor = torch.linalg.svd(sent, full_matrices=False)[0][:, :rank]
    if centred:
        basis = torch.linalg.qr(torch.cat([torch.ones_like(basis[:, :1]), basis], dim=1))[0]
    return basis


def _nearest(columns: Tensor, width: int, count: int, *, halved: bool) -> Tensor:
    """The patterns `[count, width]` whose columns are nearest to 0 and 1."""
    bits, last = torch.arange(width), 1 << (width - 1 if halved else width)
    best, kept = columns.new_zeros(0), columns.new_zeros(0, width)
    for first in range(1, last, BATCH):
        numbers = torch.arange(first, min(first + BATCH, last))
        patterns = ((numbers[:, None] >> bits) & 1).to(columns.dtype)
        v = patterns @ columns.T
        far = (v - (v > 0.5).to(v.dtype)).square().sum(dim=1)
        best, kept = torch.cat([best, far]), torch.cat([kept, patterns])
        order = best.argsort(stable=True)[:count]
        best, kept = best[order], kept[order]
    return kept
