"""The auto executor: the first exchanges of a run show which executor is the fastest, and that one stays.

Every candidate has a few exchanges. Those that come out near the fastest take turns afterwards, for the speed of a
machine changes by more between two moments than there is between two good executors. What the trials compute is what
the run asked for; no exchange is run twice.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from fedopt.engine.loop import Executor
from fedopt.engine.serial import ClientError
from fedopt.problem import Problem
from fedopt.types import Exchange, FedoptError, Named, Programs, Replies

log = logging.getLogger(__name__)

SAMPLES = 3
"""Timed exchanges of a candidate; the fastest counts, since whatever disturbs an exchange makes it slower."""

WARM = 10
"""Exchanges at most before the timed ones, while the candidate says that it is warming up."""

HOPELESS = 3.0
"""A candidate that is so many times slower than the best is not measured again."""

NEAR = 1.25
"""Candidates that are at most so many times slower than the fastest take turns with it,"""

FINALISTS = 3
"""of which there are so many at most,"""

TURNS = 3
"""each so often,"""

TURN = 3
"""for so many exchanges. The first of a turn does not count; of the others, the median does."""

CLEARLY = 1.05
"""How many times faster than the best within this process a pool has to be, for it costs memory."""

STARTING = 30.0
"""Seconds that a pool of workers has to save over the rest of the run to be worth its start."""


class Candidate(Executor, Protocol):
    """An executor that can be compared."""

    @property
    def warming(self) -> bool:
        """Whether the last exchange took longer than it will when it recurs."""
        ...


class Auto:
    """Tries the executors one after another on the exchanges of each program and keeps the fastest for it.

    inside: executors within this process, by label; the first one is tried first.
    pools: executors of several workers, by label, with the number of workers; made, and tried, only where a division by
        that number would save `STARTING` seconds over the run. The last word of a label is that of the executor inside.
    exchanges: about how many exchanges the run will have.

    Seconds are compared per client and sample, so cohorts may differ.
    """

    name = "auto"

    def __init__(
        self,
        inside: Mapping[str, Candidate],
        pools: Mapping[str, tuple[int, Callable[[], Candidate]]],
        exchanges: int,
    ) -> None:
        self._executors = dict(inside)
        self._inside = list(inside)
        self._pools = dict(pools)
        self._exchanges = exchanges
        self.choice: dict[str, str] = {}
        """The label of the executor that was kept, by program."""
        self.reason: dict[str, str] = {}
        self._trials: dict[str, _Trial] = {}
        self._plans: dict[str, dict[str, Any]] = {}
        self.serialised = 0

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        program = exchange.program

        def run(label: str) -> Replies:
            executor = self._executor(label)
            replies = executor.map(problem, programs, exchange, memory, key)
            self.serialised = getattr(executor, "serialised", 0)
            return replies

        if program in self.choice or exchange.clients.numel() == 0:
            return run(self.choice.get(program, self._inside[0]))
        trial = self._trials.setdefault(program, _Trial(list(self._inside)))
        label = trial.label
        started = time.perf_counter()
        try:
            replies = run(label)
        except ClientError:
            raise
        except FedoptError as error:
            if label not in self._pools:
                raise
            log.warning("%s is left out: %s", label, error)
            trial.drop()
            replies = run(trial.best)
        else:
            seconds = time.perf_counter() - started
            work = exchange.clients.numel() + self._samples(problem, exchange)
            trial.note(seconds / work, seconds, self._executors[label].warming)
        if trial.over:
            self._next(program, trial)
        return replies

    def plan(self) -> dict[str, Any]:
        """The choice and why, and what each chosen executor has to know."""
        used = set(self.choice.values())
        plans = {label: executor.plan() for label, executor in self._executors.items() if label in used}
        return {"choice": dict(self.choice), "reason": dict(self.reason), "plans": {**self._plans, **plans}}

    def restore(self, plan: dict[str, Any]) -> None:
        """Go on with what was chosen; programs that were still on trial are tried again."""
        # elsewhere there may be more or fewer cores; an executor of the same kind goes on with the plan, which counts
        known = (*self._executors, *self._pools)
        alike = {_kind(label): label for label in known}
        here = {label: label if label in known else alike.get(_kind(label), label) for label in plan.get("plans", {})}
        self.choice.update({name: here.get(label, label) for name, label in plan.get("choice", {}).items()})
        self.reason.update(plan.get("reason", {}))
        self._plans.update({here[label]: value for label, value in plan.get("plans", {}).items()})
        for label in set(self._plans) & set(self._executors):
            self._executors[label].restore(self._plans[label])

    def close(self) -> None:
        """End what the pools started."""
        for executor in self._executors.values():
            executor.close()

    def _executor(self, label: str) -> Candidate:
        if label not in self._executors:
            if label not in self._pools:
                raise FedoptError(
                    f"the run was begun with the executor '{label}', which is not at hand here; install what it needs"
                    " (pip install 'fedopt[ray]'), or start the run anew"
                )
            self._executors[label] = self._pools[label][1]()
            if label in self._plans:
                self._executors[label].restore(self._plans[label])
        return self._executors[label]

    def _samples(self, problem: Problem, exchange: Exchange) -> int:
        if exchange.batches is None:
            return 0
        return int(problem.data.splits[exchange.batches.split].held(exchange.clients).sum())

    def _next(self, program: str, trial: _Trial) -> None:
        """The next candidate, or the end of the trial."""
        if trial.queue:
            trial.begin(trial.queue.pop(0))
            return
        if not trial.pooled:
            trial.pooled = True
            seconds = trial.seconds[trial.best]
            worth = []
            for label, (workers, _) in self._pools.items():
                # at best, workers divide the time that their kind of executor took alone
                alone = trial.seconds.get(label.rpartition(" ")[2], seconds)
                if (seconds - alone / workers) * self._exchanges > STARTING:
                    worth.append(label)
            if worth:
                trial.queue = worth[1:]
                trial.begin(worth[0])
                return
        if trial.finals is None and trial.final():
            return
        best = trial.best
        nearby = min(
            (label for label in trial.rate if label not in self._pools), key=trial.rate.__getitem__, default=best
        )
        if trial.rate[nearby] < CLEARLY * trial.rate[best]:
            best = nearby
        self.choice[program] = best
        others = ", ".join(f"{label} {rate * 1e6:.3g}" for label, rate in trial.rate.items() if label != best)
        self.reason[program] = f"{best} took {trial.rate[best] * 1e6:.3g} microseconds per client and sample; {others}"
        log.info("program '%s' runs with %s (%s)", program, best, self.reason[program])
        del self._trials[program]
        wanted = {*self.choice.values(), *(label for other in self._trials.values() for label in other.rate)}
        for label in set(self._pools) & set(self._executors) - wanted:
            self._executors.pop(label).close()


def _kind(label: str) -> str:
    """A label without the number of threads or workers."""
    return "".join(letter for letter in label if not letter.isdigit())


class _Trial:
    """The measurements of one program."""

    def __init__(self, queue: list[str]) -> None:
        self.queue = queue[1:]
        self.rate: dict[str, float] = {}
        """Seconds per client and sample, by label: the best ones, and after the finals the median ones of these."""
        self.seconds: dict[str, float] = {}
        """Best seconds of an exchange."""
        self.pooled = False
        self.finals: dict[str, list[float]] | None = None
        """What the finalists took, once they take turns."""
        self.begin(queue[0])

    def begin(self, label: str) -> None:
        self.label, self.over = label, False
        self._run = self._timed = 0

    def final(self) -> bool:
        """Let the candidates that are near the best take turns, forwards and backwards; False if there is but one."""
        near = sorted(self.rate, key=self.rate.__getitem__)[:FINALISTS]
        near = [label for label in near if self.rate[label] <= NEAR * self.rate[self.best]]
        self.finals = {label: [] for label in near}
        if len(near) < 2:
            return False
        order = [label for turn in range(TURNS) for label in (near if turn % 2 == 0 else reversed(near))]
        self.queue = order[1:]
        self.begin(order[0])
        return True

    @property
    def best(self) -> str:
        return min(self.rate, key=self.rate.__getitem__)

    def drop(self) -> None:
        """The candidate cannot run."""
        self.rate.pop(self.label, None)
        self.queue = [label for label in self.queue if label != self.label]
        self.over = True

    def note(self, rate: float, seconds: float, warming: bool) -> None:
        """An exchange of the present candidate."""
        self._run += 1
        if self.finals is not None:
            if self._run > 1:
                self.finals[self.label].append(rate)
                self.rate[self.label] = statistics.median(self.finals[self.label])
            self.over = self._run >= TURN
            return
        others = [other for label, other in self.rate.items() if label != self.label]
        # while it is warming up, what it takes says little of what it will take
        far_behind = self._run > 1 and not warming and bool(others) and rate > HOPELESS * min(others)
        if (self._run == 1 or (warming and self._run <= WARM)) and not far_behind:
            return
        self._timed += 1
        if rate < self.rate.get(self.label, float("inf")):
            self.rate[self.label], self.seconds[self.label] = rate, seconds
        self.over = self._timed >= SAMPLES or far_behind
