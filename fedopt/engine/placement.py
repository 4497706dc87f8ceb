"""Which worker does what: lanes placed by measured cost, handed out in calls; and how much of the machine there is."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

_GROUP = Path("/sys/fs/cgroup")
_FORGET = 0.9  # weight of what was measured before, at each new measurement
_FLOOR = 0.002  # seconds: what is shorter says little about the speed of a client or of a worker


def cores(group: Path = _GROUP) -> int:
    """Cores that this process may keep busy: its affinity, or the CPU quota of its cgroup (version 2 or 1) rounded up.

    group: where cgroups are mounted.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = [*_words(group / "cpu.max"), "", ""][:2]
    if not quota:
        quota = " ".join(_words(group / "cpu" / "cpu.cfs_quota_us"))
        period = " ".join(_words(group / "cpu" / "cpu.cfs_period_us"))
    if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no quota
        found = min(found, math.ceil(int(quota) / int(period)))
    return max(1, found)


def memory_limit(group: Path = _GROUP) -> int:
    """Bytes of memory that this process and its children may use: the machine's, or fewer by its cgroup."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (group / "memory.max", group / "memory" / "memory.limit_in_bytes"):
        limit = " ".join(_words(file))
        if limit.isdigit():
            return min(whole, int(limit))
    return whole


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


class Costs:
    """How long the clients of a program take, learnt from what workers report.

    seconds of client i at worker w = (a + b samples_i) · history_i · slowness_w

    a and b by least squares with a small ridge over all calls so far, of which older ones count less. The numbers only
    decide who works where, never what comes out.
    """

    def __init__(self) -> None:
        self.slowness: dict[int, float] = {}
        """By worker; 1 is the average."""
        self._moments: dict[str, NDArray[np.float64]] = {}
        self._history: dict[str, dict[int, float]] = {}

    def known(self, program: str) -> bool:
        """Whether a call of this program has been measured."""
        return program in self._moments

    def of(self, program: str, clients: Sequence[int], samples: Seconds) -> Seconds:
        """Predicted seconds of each client at an average worker `[n]`; before anything is known, in no unit."""
        if not self.known(program):
            return 1.0 + samples
        each, per_sample = self._fit(program)
        history = self._history[program]
        factors: Seconds = np.array([history.get(client, 1.0) for client in clients])
        return (each + per_sample * samples) * factors

    def learn(
        self,
        program: str,
        worker: int,
        clients: Sequence[int],
        samples: Seconds,
        lanes: Sequence[int],
        seconds: Seconds,
        history: bool = True,
    ) -> None:
        """Take in what a call took.

        lanes: how many of `clients`, one after another, each lane has. seconds: what each lane took.
        history: whether the time of a lane tells something of its clients, as in serial work.
        """
        row = np.array([len(clients), samples.sum(), seconds.sum()])
        self._moments[program] = _FORGET * self._moments.get(program, np.zeros((3, 3))) + np.outer(row, row)
        known = self._history.setdefault(program, {})
        expected = self.of(program, clients, samples)
        # a worker is as slow as its call, a client as its lane at a worker of that slowness
        ratio = (row[2] + _FLOOR) / (float(expected.sum()) + _FLOOR)
        pace = _FORGET * self.slowness.get(worker, 1.0) + (1.0 - _FORGET) * min(max(ratio, 0.1), 10.0)
        self.slowness[worker] = pace
        if history:
            starts = np.cumsum([0, *lanes[:-1]])
            lane = (seconds / pace + _FLOOR) / (np.add.reduceat(expected, starts) + _FLOOR)
            for client, factor in zip(clients, np.repeat(lane, lanes).tolist(), strict=True):
                known[client] = min(max(known.get(client, 1.0) * factor**0.5, 0.01), 100.0)

    def _fit(self, program: str) -> tuple[float, float]:
        """a and b, neither negative."""
        moments = self._moments[program]
        normal, right = moments[:2, :2], moments[:2, 2]
        if normal[1, 1] > 0:
            ridged = normal + 1e-6 * np.diag(np.diag(normal))
            each, per_sample = np.linalg.solve(ridged, right).tolist()
            if each >= 0 and per_sample >= 0:
                return each, per_sample
            if each < 0:
                return 0.0, float(right[1] / normal[1, 1])
        return float(right[0] / normal[0, 0]), 0.0


def place(costs: Sequence[float], slowness: Sequence[float]) -> list[list[int]]:
    """Lanes for each worker, so that all end together: the longest first, each to whoever would end it first.

    Each worker's lanes are in increasing order. Ties go to the lower lane and the lower worker.
    """
    placed: list[list[int]] = [[] for _ in slowness]
    busy = [0.0] * len(slowness)
    for lane in sorted(range(len(costs)), key=lambda lane: (-costs[lane], lane)):
        worker = min(range(len(busy)), key=lambda w: (busy[w] + costs[lane] * slowness[w], w))
        busy[worker] += costs[lane] * slowness[worker]
        placed[worker].append(lane)
    return [sorted(lanes) for lanes in placed]


class Queues:
    """The lanes of an exchange that wait, a queue in increasing order for each worker.

    costs: predicted seconds of each lane; None if unknown, and every lane is a call of its own.
    call: seconds that a call should take. most: lanes in a call at most.
    together: lanes that make a group; all but the last groups of a queue are a call each, whatever they take.
    """

    def __init__(
        self,
        placed: Sequence[Sequence[int]],
        costs: Sequence[float] | None,
        call: float,
        most: int,
        together: int = 1,
    ) -> None:
        self._waiting = [deque(lanes) for lanes in placed]
        self._costs, self._call, self._most, self._together = costs, call, most, together
        self._alone: set[int] = set()

    def __bool__(self) -> bool:
        return any(self._waiting)

    def take(self, worker: int, below: int | float = math.inf) -> list[int]:
        """The next call of an idle worker, from its own queue or, where that is empty, from the longest.

        Lanes from `below` on are not handed out yet; nothing may be left to do, too.
        """
        ready = [queue for queue in self._waiting if queue and queue[0] < below]
        own = self._waiting[worker]
        if not ready:
            return []
        queue = own if own and own[0] < below else max(ready, key=self._left)
        lanes = [queue.popleft()]
        if self._costs is None or lanes[0] in self._alone:
            return lanes
        seconds = self._costs[lanes[0]]
        more = self._together - 1
        if 0 < more < len(queue) and lanes[0] % self._together == 0 and queue[more - 1] == lanes[0] + more:
            return lanes + [queue.popleft() for _ in range(more)]
        while queue and queue[0] < below and len(lanes) < self._most and queue[0] not in self._alone:
            seconds += self._costs[queue[0]]
            if seconds > self._call:
                break
            lanes.append(queue.popleft())
        return lanes

    def back(self, worker: int, lanes: Sequence[int]) -> None:
        """Lanes whose worker died: first in its queue again, and each in a call of its own, to tell who is to blame."""
        self._alone.update(lanes)
        self._waiting[worker] = deque(sorted([*lanes, *self._waiting[worker]]))

    def drop(self, lane: int) -> None:
        """Forget the lanes from `lane` on."""
        self._waiting = [deque(waiting for waiting in queue if waiting < lane) for queue in self._waiting]

    def _left(self, queue: deque[int]) -> float:
        return float(len(queue)) if self._costs is None else sum(self._costs[lane] for lane in queue)
