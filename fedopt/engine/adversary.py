"""Attackers in simulation: between the clients' honest answers and the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.data import Federation, relabel
from fedopt.engine.collect import screen, to_mean
from fedopt.types import Attack, Exchange, Named, Replies, Uplink


class Group(NamedTuple):
    """Some clients under one attack."""

    attack: Attack
    clients: Tensor


class Adversary(NamedTuple):
    """All attackers of a run, fixed at its start; a client is in one group at most."""

    groups: tuple[Group, ...] = ()

    @property
    def clients(self) -> Tensor:
        """Ids of all attackers, increasing."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(g.clients for g in self.groups)]).sort().values

    def poison(self, data: Federation, key: Tensor) -> Federation:
        """The data as the clients hold it, after the attacks on data; the server's splits stay clean."""
        splits = dict(data.splits)
        for number, (attack, clients) in enumerate(self.groups):
            if attack.labels is not None:
                flip = _flip(attack.labels, data.classes, keys.fold(key, "poison", number))
                splits["train"] = relabel(splits["train"], clients, flip)
        return data._replace(splits=splits)

    def attacked(self, execute: Callable[[Exchange], Replies], exchange: Exchange, key: Tensor) -> Replies:
        """`execute(exchange)` with the attackers' vectors replaced by what their attack makes of them.

        An attack on vectors sees rows, so a weighted mean is formed here after the attack. It changes every vector that
        has the length of the model (delta, control variates); the rest is sent as computed.
        """
        active = [(n, g) for n, g in enumerate(self.groups) if g.attack.vectors is not None]
        if not active:
            return execute(exchange)
        replies = execute(exchange._replace(reduce="rows"))
        attackers = torch.isin(replies.clients, self.clients)
        vectors = dict(replies.vectors)
        delta = vectors.get("delta")
        for name, rows in replies.vectors.items():
            if delta is None or rows.shape != delta.shape:
                continue
            for number, group in active:
                mine = torch.isin(replies.clients, group.clients)
                b = int(mine.sum())
                if b == 0:
                    continue
                honest = rows[~attackers]
                # where every client of the cohort is an attacker, their own answers are all there is to see
                seen = honest if group.attack.knowledge == "omniscient" and honest.shape[0] else rows[mine]
                word = keys.fold(key, "attack", number, name)
                assert group.attack.vectors is not None
                sent = group.attack.vectors(seen, b=b, n=replies.clients.numel(), key=word)
                vectors[name] = vectors[name].clone()
                vectors[name][mine] = sent
        return _again(replies._replace(vectors=vectors, exchange=exchange))


def _again(replies: Replies) -> Replies:
    """Screen rows that an attack wrote, then give the form that the strategy asked for."""
    usable, rejected = screen(replies.clients, Uplink(replies.vectors, {}, {}, replies.weights))

    def rows(named: Named) -> Named:
        return {name: value[usable] for name, value in named.items()}

    replies = replies._replace(
        clients=replies.clients[usable],
        vectors=rows(replies.vectors),
        weights=replies.weights[usable],
        metrics=rows(replies.metrics),
        memory=rows(replies.memory),
        rejected=tuple(sorted((*replies.rejected, *rejected))),
    )
    return to_mean(replies) if replies.exchange.reduce == "mean" else replies


def _flip(labels: Callable[..., Tensor], classes: int, key: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda y, client: labels(y, classes=classes, key=keys.fold(key, client))
