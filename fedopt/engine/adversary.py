"""Attackers in simulation: between the clients' honest answers and the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt import keys
from fedopt.data import Federation, Shards, relabel, resample
from fedopt.engine.collect import join, screen, to_mean
from fedopt.types import Attack, Batches, Exchange, FedoptError, Named, Replies, Uplink

ALTERED = "train altered by attack "
"""Splits with this name hold what attackers train on in those rounds alone in which they attack."""

Execute = Callable[[Exchange], Replies]

Divided = tuple[Tensor, Execute, Exchange]
"""Some clients, and how the exchange is run for them."""


class Schedule(NamedTuple):
    """When a group attacks: in rounds `first ... last`, each with probability `rounds`, each client with `clients`."""

    first: int = 0
    last: int | None = None
    rounds: float = 1.0
    clients: float = 1.0

    @property
    def constant(self) -> bool:
        return self == Schedule()

    def active(self, clients: Tensor, number: int, key: Tensor) -> Tensor:
        """Those of the clients that attack in this round; the draw is the same in all exchanges of a round."""
        if number < self.first or (self.last is not None and number > self.last):
            return clients[:0]
        word = keys.fold(key, "schedule", number)
        if self.rounds < 1.0 and bool(keys.uniform(word, 1)[0] >= self.rounds):
            return clients[:0]
        if self.clients < 1.0:
            each = torch.stack([keys.uniform(keys.fold(word, int(client)), 1)[0] for client in clients])
            return clients[each < self.clients]
        return clients


class Group(NamedTuple):
    """Some clients under one attack."""

    attack: Attack
    clients: Tensor
    schedule: Schedule = Schedule()

    @property
    def on_data(self) -> bool:
        return self.attack.vectors is None


UPDATES = ("delta", "difference")
"""Vectors that move the model, of which a client sends one."""


class Moment(NamedTuple):
    """Where the federation stands when an exchange is attacked."""

    key: Tensor
    """Of the exchange."""
    run: Tensor
    """Of the run."""
    round: int
    moved: Callable[[Replies], Tensor] | None = None
    """What the server's model moves by when it gets these replies `[d]`."""
    model: Tensor | None = None
    """The server's model `[d]`, the first one where it has none; for exchanges in which no common one is sent."""
    still: Execute | None = None
    """Runs an exchange whose clients take no step; None where the strategy reads more of an answer than its row."""


class Adversary(NamedTuple):
    """All attackers of a run, fixed at its start; a client is in one group on data and in one on vectors at most."""

    groups: tuple[Group, ...] = ()
    fresh: Callable[[Tensor], Tensor] | None = None
    """`key -> [d]`, first parameters as another run would draw them."""

    @property
    def clients(self) -> Tensor:
        """Ids of all attackers, increasing."""
        every = torch.cat([torch.zeros(0, dtype=torch.int64), *(g.clients for g in self.groups)])
        ids: Tensor = torch.unique(every, sorted=True)
        return ids

    def poison(self, data: Federation, key: Tensor) -> Federation:
        """The data as the clients hold it, after the attacks on data; the server's splits stay clean.

        What is altered in some rounds only goes to a split of its own beside the honest one.
        """
        splits = dict(data.splits)
        for number, group in enumerate(self.groups):
            if group.on_data:
                word = keys.fold(key, "poison", number)
                name = "train" if group.schedule.constant else f"{ALTERED}{number}"
                splits[name] = _altered(splits["train"], group, data.classes, word)
        return data._replace(splits=splits)

    def attacked(self, execute: Execute, exchange: Exchange, moment: Moment) -> Replies:
        """`execute(exchange)` with the attackers' vectors replaced by what their attack makes of them.

        An attack on vectors sees rows, so a weighted mean is formed here after the attack. It changes every vector that
        has the length of the model (delta, control variates); the rest is sent as computed. Attackers whose own work
        nobody would look at take no step, where there is a way to run that.
        """
        writing, altered = self.active(exchange, moment)
        rows = exchange._replace(reduce="rows")
        parts: list[Divided] = [(clients, execute, rows._replace(batches=batches)) for clients, batches in altered]
        if exchange.batches is not None and exchange.batches.split == "train" and moment.still is not None:
            idle = self._idle(exchange.clients, [group for _, group in writing])
            if idle.numel():
                without = rows._replace(batches=exchange.batches._replace(epochs=1, steps=0))
                parts.insert(0, (idle, moment.still, without))
        if not writing and not parts:
            return execute(exchange)
        replies = divided(execute, rows, parts) if parts else execute(rows)
        for number, group in writing:
            replies = self._written(replies, number, group, exchange, moment)
        return again(replies, exchange)

    def active(
        self, exchange: Exchange, moment: Moment
    ) -> tuple[list[tuple[int, Group]], list[tuple[Tensor, Batches]]]:
        """Who attacks in an exchange: groups that write vectors, by their numbers, and who trains on another split."""
        active = [g.schedule.active(g.clients, moment.round, keys.fold(moment.run, n)) for n, g in self._numbered()]
        here = [bool(torch.isin(exchange.clients, clients).any()) for clients in active]
        writing = [(n, g._replace(clients=active[n])) for n, g in self._numbered() if here[n] and not g.on_data]
        walk = exchange.batches
        if walk is None or walk.split != "train":
            return writing, []
        return writing, [
            (active[n], walk._replace(split=f"{ALTERED}{n}"))
            for n, g in self._numbered()
            if here[n] and g.on_data and not g.schedule.constant
        ]

    def _numbered(self) -> list[tuple[int, Group]]:
        return list(enumerate(self.groups))

    def _idle(self, asked: Tensor, writing: list[Group]) -> Tensor:
        """Those asked whose own work no group that writes looks at."""
        seen = torch.isin(asked, torch.cat([asked[:0], *(g.clients for g in writing if not g.attack.idle)]))
        if bool(torch.isin(asked, self.clients).all()):  # without anybody honest, the attackers' work is what is seen
            seen[:] = True
        written = torch.isin(asked, torch.cat([asked[:0], *(g.clients for g in writing)]))
        return asked[written & ~seen]

    def _written(self, replies: Replies, number: int, group: Group, exchange: Exchange, moment: Moment) -> Replies:
        """The replies after one group has written its rows."""
        attack = group.attack
        assert attack.vectors is not None
        delta = next((replies.vectors[name] for name in UPDATES if name in replies.vectors), None)
        mine = torch.isin(replies.clients, group.clients)
        b, n = int(mine.sum()), replies.clients.numel()
        if delta is None or b == 0:
            return replies
        honest = ~torch.isin(replies.clients, self.clients)
        vectors = dict(replies.vectors)
        for name, rows in replies.vectors.items():
            if rows.shape != delta.shape:
                continue

            def put(sent: Tensor, name: str = name, rows: Tensor = rows, others: Named = vectors) -> Named:
                changed = rows.clone()
                changed[mine] = sent
                return {**others, name: changed}

            def outcome(sent: Tensor, put: Callable[[Tensor], Named] = put) -> Tensor:
                assert moment.moved is not None
                return moment.moved(again(replies._replace(vectors=put(sent)), exchange))

            # where every client of the cohort is an attacker, their own answers are all there is to see
            omniscient = attack.knowledge == "omniscient" and bool(honest.any())
            offers = {
                "n": n,
                "key": keys.fold(moment.key, "attack", number, name),
                "round": moment.round,
                "own": rows[mine],
                "model": exchange.down.get("params", moment.model),
                "fresh": self.fresh,
                "outcome": outcome if moment.moved is not None and attack.knowledge == "omniscient" else None,
            }
            vectors = put(attack.vectors(rows[honest] if omniscient else rows[mine], b, **offers))
        return replies._replace(vectors=vectors)


def _altered(shards: Shards, group: Group, classes: int, key: Tensor) -> Shards:
    """A split as the group's clients hold it."""
    labels, samples, b = group.attack.labels, group.attack.samples, group.clients.numel()
    if labels is not None:
        return relabel(shards, group.clients, lambda y, c: labels(y, classes=classes, key=keys.fold(key, c)))
    if samples is None:
        raise FedoptError(f"the attack {group.attack.name} changes neither vectors nor labels nor samples")
    number = {client: i for i, client in enumerate(group.clients.tolist())}
    return resample(
        shards,
        group.clients,
        lambda x, y, c: samples(x, y, classes=classes, key=keys.fold(key, c), i=number[c], b=b),
    )


def divided(execute: Execute, exchange: Exchange, parts: list[Divided]) -> Replies:
    """The exchange in parts: some clients each in their own way, all others as usual; rows in client order."""
    asked = exchange.clients
    left = torch.ones(asked.numel(), dtype=torch.bool)
    answers = []
    for clients, run, form in [*parts, (asked, execute, exchange)]:
        some = torch.isin(asked, clients) & left
        left &= ~some
        if bool(some.any()):
            own = {name: value[some] for name, value in exchange.own.items()}
            answers.append(run(form._replace(clients=asked[some], own=own)))
    clients = torch.cat([a.clients for a in answers])
    order = torch.argsort(clients)

    def rows(of: Callable[[Replies], Named]) -> Named:
        return {name: value[order] for name, value in join([of(a) for a in answers]).items()}

    return Replies(
        exchange=exchange,
        clients=clients[order],
        vectors=rows(lambda a: a.vectors),
        weights=torch.cat([a.weights for a in answers])[order],
        metrics=rows(lambda a: a.metrics),
        memory=rows(lambda a: a.memory),
        rejected=tuple(sorted(rejection for a in answers for rejection in a.rejected)),
    )


def again(replies: Replies, exchange: Exchange) -> Replies:
    """Screen rows that an attack wrote, then give the form that the strategy asked for."""
    usable, rejected = screen(replies.clients, Uplink(replies.vectors, {}, {}, replies.weights))

    def rows(named: Named) -> Named:
        return {name: value[usable] for name, value in named.items()}

    replies = replies._replace(
        exchange=exchange,
        clients=replies.clients[usable],
        vectors=rows(replies.vectors),
        weights=replies.weights[usable],
        metrics=rows(replies.metrics),
        memory=rows(replies.memory),
        rejected=tuple(sorted((*replies.rejected, *rejected))),
    )
    return to_mean(replies) if exchange.reduce == "mean" else replies
