"""From clients' uplinks to replies: reject what is not finite, keep rows or form the weighted mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedopt.types import Exchange, Named, Rejection, Replies, Uplink

BLOCK = 16
"""Clients per block of a sum. Fixed, so that a sum has the same bits however clients are spread over workers."""


def screen(clients: Tensor, uplinks: Uplink) -> tuple[Tensor, tuple[Rejection, ...]]:
    """Which rows are usable `[n]`, and why the others are not: NaN or Inf anywhere, or a weight that is no weight."""
    usable = torch.isfinite(uplinks.weight) & (uplinks.weight >= 0)
    checked = {**uplinks.vectors, **{f"memory {name}": rows for name, rows in uplinks.memory.items()}}
    # one more dimension, so that rows of scalars and no rows at all flatten too
    finite = {name: torch.isfinite(rows)[..., None].flatten(1).all(dim=1) for name, rows in checked.items()}
    for rows in finite.values():
        usable = usable & rows
    rejected = []
    for i in torch.nonzero(~usable).flatten().tolist():
        wrong = next((name for name, rows in finite.items() if not rows[i]), None)
        if wrong is None:
            reason = f"its weight {float(uplinks.weight[i])} is not a finite number >= 0"
        else:
            row = checked[wrong][i]
            reason = f"{int((~torch.isfinite(row)).sum())} of {row.numel()} entries of its {wrong} are NaN or Inf"
        rejected.append(Rejection(int(clients[i]), reason))
    return usable, tuple(rejected)


def collect(exchange: Exchange, blocks: Iterable[tuple[Tensor, Uplink]]) -> Replies:
    """Replies from blocks `(rows of exchange.clients, stacked uplinks)`, in any order of the clients.

    Under `reduce = "mean"` a block is folded into the running sums as it comes, so that no more than one block of
    vectors is held.
    """
    rows: list[Tensor] = []
    rejected: list[Rejection] = []
    kept: list[Uplink] = []
    sums: Named = {}
    total: Tensor | None = None
    for where, uplinks in blocks:
        usable, wrong = screen(exchange.clients[where], uplinks)
        rejected += wrong
        rows.append(where[usable])
        vectors = uplinks.vectors
        if exchange.reduce == "mean":
            block_sums, block_total = weighted_sum(vectors, uplinks.weight, usable)
            sums = {name: sums[name] + value if name in sums else value for name, value in block_sums.items()}
            total = block_total if total is None else total + block_total
            vectors = {}
        kept.append(
            Uplink(
                {name: value[usable] for name, value in vectors.items()},
                {name: value[usable] for name, value in uplinks.metrics.items()},
                {name: value[usable] for name, value in uplinks.memory.items()},
                uplinks.weight[usable],
            )
        )
    if not kept:  # nobody was asked
        return Replies(exchange, exchange.clients, {}, torch.zeros(0), {}, {})
    where = torch.cat(rows)
    order = torch.argsort(where)
    weights = torch.cat([u.weight for u in kept])[order]
    if total is not None:
        vectors = {name: divide(value, total)[None] for name, value in sums.items()}
        weights = total[None]
    else:
        vectors = join([u.vectors for u in kept], order)
    return Replies(
        exchange=exchange,
        clients=exchange.clients[where[order]],
        vectors=vectors,
        weights=weights,
        metrics=join([u.metrics for u in kept], order),
        memory=join([u.memory for u in kept], order),
        rejected=tuple(sorted(rejected)),
    )


def weighted_sum(vectors: Named, weights: Tensor, usable: Tensor) -> tuple[Named, Tensor]:
    """sum_i w_i v_i over the usable rows, and sum_i w_i. Unusable rows may hold NaN: they are replaced, not scaled."""
    weights = torch.where(usable, weights, 0.0)
    whole = bool(usable.all())
    sums = {n: weights @ (v if whole else torch.where(usable[:, None], v, 0.0)) for n, v in vectors.items()}
    return sums, weights.sum()


def divide(value: Tensor, total: Tensor) -> Tensor:
    """value / total, and zeros where nobody had any weight."""
    return torch.where(total > 0, value / total, torch.zeros_like(value))


def join(parts: list[Named], order: Tensor) -> Named:
    """Blocks of rows by name, joined and put in client order."""
    return {name: torch.cat([part[name] for part in parts])[order] for name in (parts[0] if parts else {})}


def to_mean(replies: Replies) -> Replies:
    """Replies with rows as `reduce = "mean"` would have given them."""
    sums: Named = {}
    total = replies.weights.new_zeros(())
    for start in range(0, replies.clients.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        weights = replies.weights[block]
        rows = {name: value[block] for name, value in replies.vectors.items()}
        part, weight = weighted_sum(rows, weights, torch.ones_like(weights, dtype=torch.bool))
        sums = {name: sums[name] + value if name in sums else value for name, value in part.items()}
        total = total + weight
    vectors = {name: divide(value, total)[None] for name, value in sums.items()}
    return replies._replace(vectors=vectors, weights=total[None])
