"""A run as it goes on, told from its folder: what it is, each line of its record, and how it ended.

Whoever looks needs no more than this; where the folder is on another machine, `fedopt.wire.monitor` tells the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fedopt.types import FedoptError

POLL_S = 0.25

BATCH = 256
"""Lines that are read at once."""


class About(NamedTuple):
    """What a run is: run.json, with `data`, `clients`, `attackers` and `folder`; empty before it began."""

    facts: dict[str, Any]
    after: int
    """Number of the next line, from 0. Lines from there on that were told before are void."""


class Recorded(NamedTuple):
    """A line of metrics.jsonl."""

    number: int
    text: bytes
    more: bool
    """Another one is there already."""


class State(NamedTuple):
    """How many clients are in a state, and the lowest numbers of some of them."""

    clients: int
    first: list[int]


class Links(NamedTuple):
    """What clients do, by the names of `fedopt.wire.link.STATES`."""

    states: dict[str, State]


class Away(NamedTuple):
    """Nothing can be told for the moment, and why."""

    reason: str


class Over(NamedTuple):
    """How the run ended, as run.json has it; the status `lost` where nobody can tell any more."""

    status: str
    reason: str


Happening = About | Recorded | Links | Away | Over


class Tail:
    """The lines of a metrics.jsonl that is written to, each once.

    A run that goes on from a checkpoint writes the file anew, with fewer lines. Whether the lines handed out are still
    in it is seen from the newest of them: `after` lines were handed out, `last` is the digest of the newest (empty: not
    known, and the number alone counts).
    """

    def __init__(self, path: Path, after: int = 0, last: bytes = b"") -> None:
        self.path, self.after, self.last = path, after, last
        self._file: BinaryIO | None = None

    def read(self, most: int = BATCH) -> tuple[bool, list[bytes]]:
        """The next whole lines, up to `most`; True where they begin at the first line again."""
        anew = self._moved() and self._open()
        lines: list[bytes] = []
        while self._file is not None and len(lines) < most:
            begin = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):  # it is being written
                self._file.seek(begin)
                break
            lines.append(line)
        self.after += len(lines)
        self.last = digest(lines[-1]) if lines else self.last
        return anew, lines

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _moved(self) -> bool:
        """Whether there is a file, and it is not the one that is open."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        here = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) or there.st_size < self._file.tell()

    def _open(self) -> bool:
        """Go to where the lines that were handed out end; True where they are not in the file."""
        self.close()
        self._file = self.path.open("rb")
        line = b""
        for _ in range(self.after):
            line = self._file.readline()
        if not self.after or (line.endswith(b"\n") and self.last in (b"", digest(line))):
            return False
        self._file.seek(0)
        self.after, self.last = 0, b""
        return True


def digest(line: bytes) -> bytes:
    """Of a line with its end."""
    return hashlib.sha256(line).digest()


def facts(folder: Path) -> dict[str, Any]:
    """run.json, with the name of the data, the number of clients and the attackers; empty where no run began."""
    info = read_json(folder / "run.json")
    if not info:
        return {}
    try:
        data = tomllib.loads((folder / "config.toml").read_text("utf-8"))["data"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        data = None
    partition = read_json(folder / "partition.json")
    population, listed = partition.get("population"), partition.get("clients")
    clients = population["clients"] if isinstance(population, dict) else len(listed) if listed else None
    more = {"data": data, "clients": clients, "attackers": partition.get("attackers"), "folder": str(folder)}
    return info | {name: value for name, value in more.items() if value is not None}


def ended(folder: Path) -> Over | None:
    """How the run in the folder ended, or None while it goes on."""
    info = read_json(folder / "run.json")
    status = str(info.get("status", "running"))
    return None if status == "running" else Over(status, str(info.get("reason", "")))


def happenings(
    folder: Path,
    after: int = 0,
    last: bytes = b"",
    *,
    over: Callable[[], Over | None],
    states: Callable[[], Links | None] = lambda: None,
    pause: Callable[[], bool],
) -> Iterator[Happening]:
    """What happens in a run, until it is over.

    after, last: as for `Tail`. over: how it ended, None before; lines that were written before are told first.
    states: what its clients do now. pause: waits a little; False where nobody listens any more.
    """
    tail = Tail(folder / "metrics.jsonl", after, last)
    written: tuple[Any, ...] | None = None
    known: dict[str, Any] = {}
    shown: Links | None = None
    try:
        while True:
            ending = over()
            now = _written(folder)
            anew, lines = tail.read()
            first = tail.after - len(lines)
            if anew or now != written:
                known, written = (facts(folder), now) if now != written else (known, written)
                yield About(known, first)
            for i, text in enumerate(lines):
                yield Recorded(first + i, text, more=i + 1 < len(lines) or len(lines) == BATCH)
            links = states()
            if links is not None and links != shown:
                shown = links
                yield links
            if lines:
                continue
            if ending is not None:
                yield ending
                return
            if not pause():
                return
    finally:
        tail.close()


def follow(folder: Path) -> Iterator[Happening]:
    """What happens in the run of this folder, from its first line to its end.

    A run that was killed has not ended: whoever follows it sees how it is gone on with.

    Raises FedoptError for a folder without a run.
    """
    if not (folder / "run.json").is_file():
        raise FedoptError(
            f"{folder} is no run folder: it has no run.json; give the folder that the run writes (run.out)"
        )
    return happenings(folder, over=partial(ended, folder), pause=_sleep)


def _sleep() -> bool:
    time.sleep(POLL_S)
    return True


def _written(folder: Path) -> tuple[Any, ...]:
    """Changes when the facts may have changed."""
    found: list[Any] = []
    for name in ("run.json", "config.toml", "partition.json"):
        try:
            there = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((there.st_ino, there.st_mtime_ns, there.st_size))
    return tuple(found)


def read_json(path: Path) -> dict[str, Any]:
    """A document; an empty one where there is none that can be read (yet)."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
