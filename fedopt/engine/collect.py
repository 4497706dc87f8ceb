"""From clients' uplinks to replies: reject what is not finite, keep rows or form the weighted mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.types import Exchange, Named, Rejection, Replies, Said, Uplink

LANES = 32
"""A cohort's sum is formed in so many parts, or in parts of `LANE` clients where that makes more of them."""

LANE = 64

GROUP = 4
"""Lanes whose sums are added to one before it is added to the total."""

Span = tuple[int, int]
"""First lane, and the one after the last."""


class Sum(NamedTuple):
    """sum_i w_i v_i by name, and sum_i w_i, over the accepted clients of a lane or of a group of lanes."""

    vectors: Named
    weight: Tensor


class Part(NamedTuple):
    """What is known of some of an exchange's clients: the accepted answers, and who was rejected."""

    where: Tensor
    """Rows of `exchange.clients` that were accepted."""
    vectors: Named
    """Their rows; under `reduce = "mean"` nothing."""
    sums: dict[Span, Sum]
    """Of lanes and of whole groups, under `reduce = "mean"`."""
    weights: Tensor
    metrics: Named
    memory: Named
    rejected: tuple[Rejection, ...]


def lanes(n: int) -> list[range]:
    """The rows of each lane: consecutive, in sizes that differ by one at most.

    A lane is summed by one worker, one client after another; the sums of the lanes of a group are added in their order,
    wherever they meet, and then the sums of the groups. Since lanes follow from n alone, a mean has the same bits
    however the lanes are spread over workers.
    """
    count = min(n, max(LANES, -(-n // LANE)))
    return [range(i * n // count, (i + 1) * n // count) for i in range(count)]


def screen(clients: Tensor, uplinks: Uplink) -> tuple[Tensor, tuple[Rejection, ...]]:
    """Which rows are usable `[n]`, and why the others are not: NaN or Inf anywhere, or a weight that is no weight."""
    usable = torch.isfinite(uplinks.weight) & (uplinks.weight >= 0)
    checked = {**uplinks.vectors, **{f"memory {name}": rows for name, rows in uplinks.memory.items()}}
    finite = {name: _finite(rows) for name, rows in checked.items() if rows.is_floating_point()}
    for rows in finite.values():
        usable = usable & rows
    if bool(usable.all()):
        return usable, ()
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


def _finite(rows: Tensor) -> Tensor:
    """Which rows are finite everywhere `[n]`."""
    # one more dimension, so that rows of scalars and no rows at all flatten too
    flat = rows[..., None].flatten(1)
    # a sum reads memory once and lets NaN and Inf through; a finite row may overflow, so a bad sum is looked into
    finite = torch.isfinite(flat.sum(dim=1))
    return finite if bool(finite.all()) else torch.isfinite(flat).all(dim=1)


def gather(exchange: Exchange, blocks: Iterable[tuple[int, Tensor, Uplink]]) -> Part:
    """One part from blocks `(lane, rows of exchange.clients, stacked uplinks)`.

    Under `reduce = "mean"` a block is folded into its lane's sums as it comes and its vectors are let go.
    """
    where: list[Tensor] = []
    kept: list[Uplink] = []
    rejected: list[Rejection] = []
    sums: dict[Span, Sum] = {}
    for lane, rows, uplinks in blocks:
        if exchange.reduce == "mean":
            span = lane, lane + 1
            usable, wrong, sums[span] = _summed(exchange.clients[rows], uplinks, sums.get(span))
            uplinks = uplinks._replace(vectors={})
        else:
            usable, wrong = screen(exchange.clients[rows], uplinks)
        rejected += wrong
        if wrong:
            rows = rows[usable.cpu()]
            uplinks = each(uplinks, lambda value: value[usable])  # noqa: B023 - used at once
        where.append(rows)
        kept.append(each(uplinks, _alone))
    return Part(
        where=torch.cat(where),
        vectors=join([u.vectors for u in kept]),
        sums=sums,
        weights=torch.cat([u.weight for u in kept]).cpu(),
        metrics=join([u.metrics for u in kept]),
        memory=join([u.memory for u in kept]),
        rejected=tuple(rejected),
    )


def _summed(clients: Tensor, uplinks: Uplink, onto: Sum | None) -> tuple[Tensor, tuple[Rejection, ...], Sum]:
    """What `screen` says, and the sum over the usable rows, added to `onto`."""
    weights = uplinks.weight
    if weights.numel() > 1 and bool((weights > 0).all()):
        # a sum is finite only if each of its rows is, so memory is read once and not once more for the screening
        total = weighted_sum(uplinks.vectors, weights)
        if all(bool(torch.isfinite(value).all()) for value in total.vectors.values()):
            usable, wrong = screen(clients, uplinks._replace(vectors={}))
            if not wrong:
                return usable, wrong, total if onto is None else _plus(onto, total)
    usable, wrong = screen(clients, uplinks)
    return usable, wrong, weighted_sum(uplinks.vectors, weights, usable if wrong else None, onto)


def each(uplinks: Uplink, function: Callable[[Tensor], Tensor]) -> Uplink:
    """The same answers with a function of every tensor."""

    def named(tensors: Mapping[str, Tensor]) -> Named:
        return {name: function(value) for name, value in tensors.items()}

    said = {n: Said(named(one.code), function(one.whole), function(one.vector)) for n, one in uplinks.said.items()}
    vectors, metrics, memory = named(uplinks.vectors), named(uplinks.metrics), named(uplinks.memory)
    return Uplink(vectors, metrics, memory, function(uplinks.weight), said)


def _alone(value: Tensor) -> Tensor:
    """The same values; a small piece of a large tensor is copied, so that it does not hold the rest."""
    return value.clone() if value.untyped_storage().nbytes() > 2 * value.nbytes else value


def fold(sums: dict[Span, Sum]) -> dict[Span, Sum]:
    """The same sums, with one for each group whose lanes are all there."""
    folded = dict(sums)
    for first, after in sums:
        lanes = [(lane, lane + 1) for lane in range(first, first + GROUP)]
        if first % GROUP == 0 and after == first + 1 and all(span in sums for span in lanes):
            total: Sum | None = None
            for span in lanes:
                total = _plus(total, folded.pop(span))
            assert total is not None
            folded[first, first + GROUP] = total
    return folded


def merge(exchange: Exchange, parts: Iterable[Part]) -> Replies:
    """Replies from parts that have all clients of the exchange between them.

    Sums are added in the order of the lanes; one that comes before its turn waits.
    """
    known: list[Part] = []
    waiting: dict[Span, Sum] = {}
    total: Sum | None = None
    group: Sum | None = None
    turn = 0
    for part in parts:
        waiting |= part.sums
        while True:
            if (whole := (turn, turn + GROUP)) in waiting:
                total, turn = _plus(total, waiting.pop(whole)), turn + GROUP
            elif (alone := (turn, turn + 1)) in waiting:
                group, turn = _plus(group, waiting.pop(alone)), turn + 1
                if turn % GROUP == 0:
                    total, group = _plus(total, group), None
            else:
                break
        known.append(part._replace(sums={}))
    if waiting:
        raise RuntimeError(f"sums of the lanes {sorted(waiting)} came, and none of lane {turn}")
    if group is not None:
        total = _plus(total, group)
    if not known:  # nobody was asked
        return Replies(exchange, exchange.clients, {}, torch.zeros(0), {}, {})
    where = torch.cat([part.where for part in known])
    order = torch.argsort(where)
    if total is not None:
        weights = total.weight.cpu()[None]
        vectors = {name: divide(value, total.weight).cpu()[None] for name, value in total.vectors.items()}
    else:
        weights = torch.cat([part.weights for part in known])[order]
        vectors = join([part.vectors for part in known], order)
    return Replies(
        exchange=exchange,
        clients=exchange.clients[where[order]],
        vectors=vectors,
        weights=weights,
        metrics=join([part.metrics for part in known], order),
        memory=join([part.memory for part in known], order),
        rejected=tuple(sorted(rejection for part in known for rejection in part.rejected)),
    )


def weighted_sum(vectors: Named, weights: Tensor, usable: Tensor | None = None, onto: Sum | None = None) -> Sum:
    """sum_i w_i v_i over the usable rows (None: all), and sum_i w_i, added to `onto`, which is written over.

    Unusable rows may hold NaN: they are replaced, not scaled.
    """
    if usable is not None:
        weights = torch.where(usable, weights, 0.0)
        vectors = {name: torch.where(usable[:, None], rows, 0.0) for name, rows in vectors.items()}
    if weights.numel() == 1:  # no product for one row: it is added in one pass over memory
        alone = float(weights[0])
        if onto is not None:
            sums = {name: onto.vectors[name].add_(rows[0], alpha=alone) for name, rows in vectors.items()}
        else:
            sums = {name: rows[0] * alone for name, rows in vectors.items()}
    else:
        sums = {name: weights @ rows for name, rows in vectors.items()}
        if onto is not None:
            sums = {name: onto.vectors[name].add_(value) for name, value in sums.items()}
    weight = weights.sum()
    return Sum(sums, weight if onto is None else onto.weight + weight)


def _plus(total: Sum | None, lane: Sum) -> Sum:
    if total is None:
        return lane
    return Sum({n: value.add_(lane.vectors[n]) for n, value in total.vectors.items()}, total.weight + lane.weight)


def divide(value: Tensor, total: Tensor) -> Tensor:
    """value / total, and zeros where nobody had any weight."""
    return torch.where(total > 0, value / total, torch.zeros_like(value))


def join(parts: list[Named], order: Tensor | None = None) -> Named:
    """Blocks of rows by name, joined, and put in an order if there is one; on the CPU, where the server is."""
    joined = {name: torch.cat([part[name] for part in parts]).cpu() for name in (parts[0] if parts else {})}
    return joined if order is None else {name: rows[order] for name, rows in joined.items()}


def to_mean(replies: Replies) -> Replies:
    """Replies with rows as `reduce = "mean"` would have given them, to rounding."""
    total: Sum | None = None
    for lane in lanes(replies.clients.numel()):
        rows = slice(lane.start, lane.stop)
        here = {name: value[rows] for name, value in replies.vectors.items()}
        total = _plus(total, weighted_sum(here, replies.weights[rows]))
    if total is None:  # nobody was accepted
        total = Sum({n: v.new_zeros(v.shape[1:]) for n, v in replies.vectors.items()}, replies.weights.new_zeros(()))
    vectors = {name: divide(value, total.weight)[None] for name, value in total.vectors.items()}
    return replies._replace(vectors=vectors, weights=total.weight[None])
