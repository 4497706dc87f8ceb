"""The clients' part of the report: who holds what, who took part, who was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean as mean
from typing import Any

from fedopt.report import record as run
from fedopt.report import units
from fedopt.report.page import POINTS
from fedopt.report.record import RunRecord

CLIENTS_DRAWN = 200
"""The most clients of which each has a column or row in a picture."""
BARS_DRAWN = 40
ROWS = 10_000
"""The most rows that a table holds."""
COLUMNS = 120
"""The most columns of a heat map over rounds, and points of a stacked area."""
LINES_DRAWN = 8
"""The most curves or classes of which each has a colour."""


def spread(n: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0 ... n-1, evenly spaced, with the first and the last."""
    return list(range(n)) if n <= limit else [round(i * (n - 1) / (limit - 1)) for i in range(limit)]


def pieces(n: int, limit: int) -> list[range]:
    """0 ... n-1 in at most `limit` consecutive pieces of the same length, but for the last."""
    span = -(-n // limit)
    return [range(a, min(a + span, n)) for a in range(0, n, span)] if n else []


def listed(record: RunRecord) -> list[dict[str, Any]]:
    """The clients that partition.json describes: all of them, or some of a large population."""
    found = record.partition.get("clients")
    return [c for c in found if isinstance(c, dict) and "client" in c] if isinstance(found, list) else []


def population(record: RunRecord) -> int:
    """How many clients the federation has."""
    found = record.partition.get("population")
    told = run.number(found.get("clients")) if isinstance(found, Mapping) else None
    return len(listed(record)) if told is None else int(told)


def name(client: Mapping[str, Any]) -> str:
    """The client's name, `client 7` for one that has none."""
    return str(client.get("name") or f"client {client['client']}")


def attacking(record: RunRecord) -> set[int]:
    """Ids of the attackers."""
    return ids(record.partition.get("attackers")).union(*(ids(attack.get("clients")) for attack in attacks(record)))


def ids(value: Any) -> set[int]:
    """The whole numbers in a list; empty for everything else."""
    return {i for i in value if isinstance(i, int) and not isinstance(i, bool)} if isinstance(value, list) else set()


def attacks(record: RunRecord) -> list[dict[str, Any]]:
    """The attacks of which partition.json tells the name."""
    found = record.partition.get("attacks")
    return [a for a in found if isinstance(a, dict) and a.get("name")] if isinstance(found, list) else []


def attack_name(attack: Mapping[str, Any]) -> str:
    """The attack's name, without its import path."""
    return str(attack["name"]).rpartition(":")[2]


def roles(record: RunRecord) -> dict[int, str]:
    """What each attacker is, `attacker`, and does, `attacker: ipm, rounds 5 to 20`, by client."""
    told: dict[int, list[str]] = {}
    for attack in attacks(record):
        for client in ids(attack.get("clients")):
            told.setdefault(client, []).append(_described(attack))
    return {
        client: f"attacker: {'; '.join(told[client])}" if client in told else "attacker"
        for client in sorted(attacking(record))
    }


def _described(attack: Mapping[str, Any]) -> str:
    """The attack's name and when it takes place; a schedule counts rounds from 0, the record from 1."""
    first = run.number(attack.get("first_round")) or 0
    last = run.number(attack.get("last_round"))
    words = [attack_name(attack)]
    if last is not None:
        words.append(f"rounds {first + 1:.0f} to {last + 1:.0f}")
    elif first:
        words.append(f"from round {first + 1:.0f}")
    for key, what in (("rounds_share", "rounds"), ("clients_share", "attackers in a round")):
        share = run.number(attack.get(key))
        if share is not None and share < 1:
            words.append(f"{units.percent(share)} of {what}")
    return ", ".join(words)


def _train(client: Mapping[str, Any]) -> int:
    return int(run.number(client.get("train")) or 0)


def sizes(record: RunRecord) -> dict[str, list[int]]:
    """How many of the clients listed have how many training samples."""
    return _tally(Counter(_train(c) for c in listed(record)))


def _tally(found: Mapping[int, int]) -> dict[str, list[int]]:
    return {"values": sorted(found), "clients": [found[value] for value in sorted(found)]}


def partition(record: RunRecord) -> dict[str, Any] | None:
    """Labels by client, for bars or a heat map; a sample where there are many clients."""
    everybody = listed(record)
    if not everybody:
        return None
    every = len(everybody) <= CLIENTS_DRAWN
    attackers = attacking(record)
    by_size = everybody if every else sorted(everybody, key=_train)
    marked = [i for i, c in enumerate(by_size) if c["client"] in attackers]
    marked = [marked[i] for i in spread(len(marked), CLIENTS_DRAWN // 4)]  # a sample shows attackers, too
    shown = {*marked, *spread(len(by_size), CLIENTS_DRAWN - (0 if every else len(marked)))}
    drawn = [by_size[i] for i in sorted(shown)]
    labelled = all(c.get("labels") for c in drawn)
    names = [str(name) for name in record.partition.get("class_names") or ()]
    width = max((len(c["labels"]) for c in drawn), default=0) if labelled else 1
    names = (names + [str(k) for k in range(len(names), width)])[:width] if labelled else ["all"]
    rows = [list(c["labels"]) + [0] * (width - len(c["labels"])) if labelled else [_train(c)] for c in drawn]
    return {
        "names": [name(c) for c in drawn],
        "sizes": [_train(c) for c in drawn],
        "attackers": [int(c["client"] in attackers) for c in drawn],
        "classes": names,
        "values": [[row[k] for row in rows] for k in range(width)],
        "bars": len(drawn) <= BARS_DRAWN and width <= LINES_DRAWN,
        "every": every,
    }


def _accepted(record: RunRecord) -> Counter[int]:
    return Counter(client for line in record.lines for client in line.get("clients") or ())


def _refused(record: RunRecord) -> list[tuple[int, int, str]]:
    """(client, round, reason) of each rejected answer."""
    return [
        (entry["client"], line["round"], str(entry.get("reason") or "no reason given"))
        for line in record.lines
        for entry in line.get("rejected") or ()
        if isinstance(entry, Mapping) and "client" in entry
    ]


def times(record: RunRecord) -> dict[str, list[int]]:
    """How many clients of the whole population were accepted how often."""
    accepted = _accepted(record)
    found = Counter(accepted.values())
    found[0] = max(population(record) - len(accepted), 0)
    return _tally(found)


def participation(record: RunRecord) -> dict[str, Any] | None:
    """Accepted answers per round of every client, in cells of some rounds."""
    clients = listed(record)
    rounds = run.totals(record).rounds
    if not clients or not rounds:
        return None
    cells = pieces(rounds, COLUMNS)
    cell_of = {r + 1: i for i, cell in enumerate(cells) for r in cell}
    starts = [cell[0] + 1 for cell in cells]
    row_of = {c["client"]: i for i, c in enumerate(clients)}
    values = [[0.0] * len(cells) for _ in clients]
    for line in record.lines:
        for client in line.get("clients") or ():
            if client in row_of and line["round"] in cell_of:
                cell = cell_of[line["round"]]
                values[row_of[client]][cell] += 1 / len(cells[cell])
    spots = {(starts[cell_of[r]], client) for client, r, _ in _refused(record) if client in row_of and r in cell_of}
    marks = sorted(spots)[:POINTS]
    return {
        "rounds": starts,
        "clients": [c["client"] for c in clients],
        "names": [name(c) for c in clients],
        "values": values,
        "most": max(map(max, values)),
        "span": max(map(len, cells)),
        "rejected": {"x": [x for x, _ in marks], "y": [y for _, y in marks]},
    }


def table(record: RunRecord) -> dict[str, Any] | None:
    """The table of clients: those listed, then the others that were heard of."""
    clients = listed(record)
    if not clients:
        return None
    accepted, refused = _accepted(record), Counter(client for client, _, _ in _refused(record))
    losses: dict[int, float | None] = {}
    trust: dict[int, list[float]] = {}
    for line in record.lines:
        for i, weight in run.weights(line).items():
            trust.setdefault(i, []).append(weight)
        losses.update(zip(line.get("clients") or (), map(run.number, line.get("client_loss") or ()), strict=False))
    role = roles(record)
    classes = len(record.partition.get("class_names") or ())
    heard = {*accepted, *refused} - {client["client"] for client in clients}
    clients = [*clients, *({"client": i} for i in sorted(heard))][:ROWS]
    rows = []
    for client in clients:
        i = client["client"]
        held = sum(1 for k in client.get("labels") or () if k)
        loss = losses.get(i)
        rows.append(
            [
                [i, name(client)],
                [_train(client), units.count(_train(client))] if "train" in client else None,
                [held, f"{held} of {classes}"] if classes and "labels" in client else None,
                accepted[i] + refused[i],
                accepted[i],
                refused[i],
                None if loss is None else [loss, f"{loss:.4g}"],
                *([[mean(trust[i]), units.percent(mean(trust[i]))] if i in trust else None] if trust else []),
                role.get(i, ""),
            ]
        )
    heads = [
        ("client", ""),
        ("samples", "training samples"),
        ("classes", "classes of which the client holds samples"),
        ("asked", "answered or rejected"),
        ("answered", "answers that were used"),
        ("rejected", "answers that were not used"),
        ("last loss", "training loss of the last accepted answer"),
        *([("mean trust", "mean weight that the rule gave to the client's answers")] if trust else []),
        ("role", ""),
    ]
    width = len(heads) if role else len(heads) - 1
    return {
        "columns": [
            {"name": n, "hint": h, "right": n not in ("client", "role"), "long": n == "role" and bool(attacks(record))}
            for n, h in heads[:width]
        ],
        "rows": [row[:width] for row in rows],
        "marked": [k for k, client in enumerate(clients) if client["client"] in role],
    }


def rejections(record: RunRecord) -> dict[str, Any] | None:
    """The table of refused answers, by client and reason."""
    rounds: dict[tuple[int, str], list[int]] = {}
    for client, r, reason in _refused(record):
        rounds.setdefault((client, reason), []).append(r)
    if not rounds:
        return None
    names = {c["client"]: name(c) for c in listed(record)}
    return {
        "columns": [
            {"name": "client"},
            {"name": "reason", "long": True},
            {"name": "times", "right": True},
            {"name": "first round", "right": True},
            {"name": "last round", "right": True},
        ],
        "rows": [
            [[client, names.get(client, f"client {client}")], reason, len(when), min(when), max(when)]
            for (client, reason), when in list(rounds.items())[:ROWS]
        ],
        "sort": [2, True],
    }
