"""Who is whom: the people that all parties have, in one order, and a party's own table."""

from __future__ import annotations

import csv
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from fedopt.data._extras import optional
from fedopt.data._paths import data_path, wrong_file
from fedopt.registry import ConfigError, nearest

log = logging.getLogger(__name__)

Method = Literal["given", "hashed", "psi"]


class Party(NamedTuple):
    """What one party brings: the `ids` of its people, their features `x [S, d]`, and the `names` of the d columns."""

    ids: tuple[str, ...]
    x: Tensor
    names: tuple[str, ...]


def align(ids: Sequence[Sequence[str]], method: Method) -> list[Tensor]:
    """Where the people that everybody has stand in each list: positions int64 `[m]`, for each list in one order.

    ids: of the label owner's people, `ids[0]`, and of those of party i, `ids[1 + i]`.
    method: how the common people are found.

        given    they are in one order already, which is checked and kept
        hashed   a party sends the hashes (SHA-256) of its ids, with a salt that the label owner has told it, and the
                 label owner looks for its own people among them. NOT private: whoever has the salt finds out by trial
                 whose id is behind a hash, and ids such as telephone numbers are few enough to try them all. For
                 simulations, and for ids that are no secret
        psi      private set intersection by elliptic-curve Diffie-Hellman, the label owner with one party at a time

    The order of `hashed` and `psi` is that of the ids as strings (by code points), so both give the same.

    What `psi` tells whom, as long as everybody keeps to the protocol: the label owner learns the number of each party's
    people, and which of its own people each party has; a party learns the number of the label owner's people. Then
    the label owner tells all parties the ids that everybody has, so each learns that all others have these people, and
    nothing of the rest. It does not hold against a label owner who asks for ids of people that it does not have. With
    `hashed`, the label owner has the hashes of all ids beside.

    Raises ConfigError for an id that is no string or is given twice, for a list without people, when nobody is in all
    lists, for lists that differ under `given`, and without the package that `psi` needs.

    Reference for `psi`: Angelou et al. 2020, Asymmetric private set intersection with applications to contact tracing
    and private vertical federated machine learning, arXiv 2011.09350; Meadows 1986.

    *Differences from the paper:* the set-up message holds all encrypted ids in place of a Bloom filter of them, so that
    nobody is found who is not there.
    """
    if method not in get_args(Method):
        raise ConfigError(
            "data.vertical.alignment", f"one of {', '.join(get_args(Method))} was needed, '{method}' was given"
        )
    if not ids:
        raise ConfigError(
            "data.vertical.alignment", "the ids of the label owner and of the parties were needed, none were given"
        )
    _check(ids)
    if method == "given":
        return _given(ids)
    if method == "hashed":
        log.warning(
            "people are aligned by salted hashes of their ids, which is not private: ids can be found out by trial;"
            " use data.vertical.alignment = 'psi' where they are to stay secret"
        )
    meet: Callable[[Sequence[str], Sequence[str]], set[str]] = _psi if method == "psi" else _hashed
    common = set(ids[0])
    for own in ids[1:]:
        common &= meet(ids[0], own)
    if not common:
        raise ConfigError(
            "data.vertical.alignment",
            f"nobody is with the label owner and all of {len(ids) - 1} parties, of {len(ids[0])} people of the label"
            " owner; are these ids of one kind?",
        )
    order = sorted(common)
    positions = []
    for own in ids:
        stands = {person: position for position, person in enumerate(own)}
        positions.append(torch.tensor([stands[person] for person in order], dtype=torch.int64))
    return positions


def _who(number: int) -> str:
    return f"party {number - 1}" if number else "the label owner"


def _check(ids: Sequence[Sequence[str]]) -> None:
    for number, own in enumerate(ids):
        if not len(own):
            raise ConfigError("data.vertical.alignment", f"{_who(number)} has no people")
        for position, person in enumerate(own):
            if not isinstance(person, str):
                raise ConfigError(
                    "data.vertical.alignment",
                    f"ids have to be strings, {_who(number)} has {type(person).__name__} at position {position}",
                )
        first: dict[str, int] = {}
        again = [position for position, person in enumerate(own) if first.setdefault(person, position) != position]
        if again:
            raise ConfigError(
                "data.vertical.alignment",
                f"every person has to be there once, {_who(number)} repeats ids at {len(again)} of {len(own)}"
                f" positions, first at position {again[0]}",
            )


def _given(ids: Sequence[Sequence[str]]) -> list[Tensor]:
    owner = list(ids[0])
    for number, own in enumerate(ids[1:], start=1):
        other = list(own)
        if other == owner:
            continue
        length = max(len(owner), len(other))
        differ = [k for k in range(length) if owner[k : k + 1] != other[k : k + 1]]
        apart = len(set(owner) ^ set(other))
        people = f"{apart} people are with one of them alone" if apart else "the people are the same, in another order"
        raise ConfigError(
            "data.vertical.alignment",
            f"'given' needs everybody's people in one order, and {_who(number)} differs from the label owner at"
            f" {len(differ)} of {length} positions, first at position {differ[0]}; {people}. Use 'psi' or 'hashed'",
        )
    return [torch.arange(len(owner)) for _ in ids]


def _hashed(owner: Sequence[str], party: Sequence[str]) -> set[str]:
    salt = secrets.token_bytes(16)

    def coded(person: str) -> bytes:
        return hashlib.sha256(salt + person.encode()).digest()

    sent = {coded(person) for person in party}
    return {person for person in owner if coded(person) in sent}


def _psi(owner: Sequence[str], party: Sequence[str]) -> set[str]:
    psi = optional("private_set_intersection.python", "vfl")
    asks, answers = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
    # the rate of false positives is of filters, and raw encrypted ids have none
    setup = answers.CreateSetupMessage(1e-9, len(owner), list(party), psi.DataStructure.RAW)
    response = answers.ProcessRequest(asks.CreateRequest(list(owner)))
    return {owner[position] for position in asks.GetIntersection(setup, response)}


def read_party(path: str, *, id_column: str = "id") -> Party:
    """A party's table from a .csv file (UTF-8, commas, names in the first line) or a .parquet file.

    path: below FEDOPT_DATA, or absolute.
    id_column: which column names the people; all others are features, float32.

    Raises ConfigError, naming the file, the column and the person's row (the first person's is 1), for a missing file,
    one of another kind, names that are missing or given twice, an id that is empty or given twice, and a feature that
    is no finite number.
    """
    file = data_path(path, "data.path")
    readers = {".csv": _csv, ".parquet": _parquet}
    if file.suffix not in readers:
        raise wrong_file(file, "data.path", "a .csv or a .parquet file", f"'{file.suffix}'")
    names, columns = readers[file.suffix](file)
    if id_column not in names:
        raise ConfigError(
            "data.id_column",
            f"{file} has no column '{id_column}'.{nearest(id_column, names)} Columns: {', '.join(names)}",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise wrong_file(file, "data.path", "columns with different names", f"'{twice[0]}' more than once")
    table = dict(zip(names, columns, strict=True))
    ids = ["" if person is None else str(person) for person in table.pop(id_column)]
    if not ids or not table:
        expected = f"a person and a column beside '{id_column}', or more"
        raise wrong_file(file, "data.path", expected, f"{len(ids)} people and {len(table)} columns beside it")
    rows: dict[str, int] = {}
    for row, person in enumerate(ids, start=1):
        if not person or rows.setdefault(person, row) != row:
            found = f"that of row {rows[person]} again" if person else "none"
            raise wrong_file(file, "data.path", f"an id of its own in column '{id_column}', row {row}", found)
    x = np.empty((len(ids), len(table)), dtype=np.float32)
    for position, (name, values) in enumerate(table.items()):
        with np.errstate(over="ignore"):  # what is too large for float32 is an infinity, which is refused
            x[:, position] = [_number(value) for value in values]
        wrong = np.flatnonzero(~np.isfinite(x[:, position]))
        if len(wrong):
            raise wrong_file(
                file,
                "data.path",
                f"finite numbers in column '{name}'",
                f"{values[wrong[0]]!r} in row {wrong[0] + 1} ({len(wrong)} such rows)",
            )
    return Party(tuple(ids), torch.from_numpy(x), tuple(table))


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _csv(file: Path) -> tuple[list[str], list[Sequence[object]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            names, *people = [row for row in csv.reader(lines, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise wrong_file(file, "data.path", "a table in UTF-8 with commas", str(error)) from error
    for number, cells in enumerate(people, start=1):
        if len(cells) != len(names):
            raise wrong_file(
                file, "data.path", f"{len(names)} cells in row {number}, as in the first line", str(len(cells))
            )
    return names, [[cells[k] for cells in people] for k in range(len(names))]


def _parquet(file: Path) -> tuple[list[str], list[Sequence[object]]]:
    parquet = optional("pyarrow.parquet", "vfl")
    try:
        table = parquet.ParquetFile(file).read()
    except (OSError, ValueError) as error:  # Arrow's errors are among these
        raise wrong_file(file, "data.path", "a Parquet file", str(error)) from error
    return list(table.column_names), [column.to_pylist() for column in table.columns]
