"""The ray executor: lanes of clients run by a pool of Ray actors, on one machine or on a cluster.

Each actor holds the problem and an inner executor, serial or stacked, and answers a call with the parts that this
executor gives. The lanes do not depend on who runs them and are merged in their order, so with serial the replies have
the serial executor's bits, however many workers there are and however often one died on the way.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import logging
import math
import os
import pickle
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import ray
import torch
from ray import cloudpickle
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from torch import Tensor, nn

from fedopt import models
from fedopt.engine.cohort import Cohort, assemble
from fedopt.engine.collect import GROUP, Part, merge
from fedopt.engine.placement import Costs, Queues, cores, memory_limit, place
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Precision, Stacked
from fedopt.engine.worker import COPIED, Packed, Task, Worker, arrays, line, nbytes, part_of, raise_described, rebuilt
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Exchange, FedoptError, Named, Programs, Replies

log = logging.getLogger(__name__)

CALL = 0.2
"""Seconds that a call should take: long beside Ray's milliseconds, short beside an exchange that is worth balancing."""
DEATHS = 3
"""So many workers may die at the same lane before the run ends."""

POOLS = 4
"""Pools that a Ray started here has room for; while executors are compared, several are there at once."""

_INLINE = 64 << 10  # bytes that travel with each call; more is put into the object store, once for each node
_BATCH = 64 << 20  # bytes of answers in a call, and of sums that may be ahead of their turn
_PATIENCE = 10.0  # seconds without news after which the cluster is looked at
_STARTING = 180.0  # seconds that a worker may take to start
_KEPT = 4  # problems and programs that workers hold

_GONE = (RayActorError, WorkerCrashedError, OutOfMemoryError, ObjectLostError, GetTimeoutError)


class _RefusedError(Exception):
    """The program cannot be stacked."""


class _TooMuchError(Exception):
    """A micro-cohort did not fit."""


class _Sent(NamedTuple):
    """A problem, or the programs of problem `of`, as workers hold it."""

    number: int
    value: Any
    packed: Any
    """In the object store, unless it is small."""
    tensors: list[Tensor]
    """The tensors of a problem, which programs refer to by number."""
    of: int | None = None


class _Seat:
    """A place in the pool: its actor, and what was sent to it."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.since = actor, time.monotonic()
        self.pid = actor.pid.remote()
        self.sent: set[int] = set()


class _Job(NamedTuple):
    """An exchange on its way."""

    problem: Problem
    exchange: Exchange
    cohort: Cohort
    key: Tensor
    inner: Literal["serial", "stacked"]
    sent: tuple[_Sent, _Sent]
    down: Any
    pieces: Sequence[Tensor]
    width: int | None


class Ray:
    """Runs the clients in `workers` actors, each with an inner executor.

    inner: `serial` has the bits of the serial executor; `stacked` forms a sum per worker, equal to rounding.
    workers: actors; by default as many as there are cores for, or GPUs.
    memory_mb: for the micro-cohorts of each worker.
    threads: threads of torch in each worker; 1 is what the serial executor computes with.
    address: of a Ray cluster to join; by default Ray is started here, unless the caller has started it.
    device, precision: of the inner executor.
    gpus_per_worker: GPUs of each worker, a fraction too; its device is then `cuda`.
    worker_memory_mb: what a worker may allocate beyond what it starts with. Ray places workers where there is so much;
        on the CPU, the system holds them to it.

    A worker that dies is replaced and its lanes run again. A micro-cohort that does not fit is run again half as wide.
    """

    name = "ray"

    def __init__(
        self,
        inner: Literal["serial", "stacked"] = "stacked",
        workers: int | None = None,
        memory_mb: float = 1024.0,
        threads: int = 1,
        address: str | None = None,
        device: str = "cpu",
        precision: Precision = "full",
        gpus_per_worker: float = 0.0,
        worker_memory_mb: float | None = None,
    ) -> None:
        self.inner: Literal["serial", "stacked"] = inner
        self.workers, self.memory_mb, self.threads = workers, memory_mb, threads
        self.address, self.gpus_per_worker, self.worker_memory_mb = address, gpus_per_worker, worker_memory_mb
        self.device = "cuda" if gpus_per_worker > 0 else device
        self.precision: Precision = precision
        self.width: dict[str, int] = {}
        """Clients per micro-cohort, by program, the same at every worker."""
        self.refused: dict[str, str] = {}
        """Programs that run serially, with the reason."""
        self.deaths = 0
        """Workers that were replaced."""
        self.serialised = 0
        """Bytes sent to and from workers in the last exchange."""
        self.warming = False
        """Whether a worker ran something eagerly in the last exchange that will be traced if it recurs."""
        self._cut = workers
        self._serial, self._stacked = Serial(), Stacked(memory_mb, self.device, precision)
        self._costs = Costs()
        self._seats: list[_Seat] = []
        self._sent: list[_Sent] = []
        self._numbers = itertools.count()
        self._ours = False

    def map(self, problem: Problem, programs: Programs, exchange: Exchange, memory: Named, key: Tensor) -> Replies:
        if exchange.clients.numel() == 0:
            return merge(exchange, [])
        cohort = assemble(problem, exchange, memory, key)
        self.serialised, self.warming = 0, False
        sent = self._send(problem, programs, exchange)
        down = self._shared(arrays(exchange.down))
        name, known = exchange.program, exchange.program in self.refused
        if self.inner == "stacked" and not known and exchange.batches is not None:
            reason = models.stackable(problem.network.training)
            if reason is not None:
                self._refuse(name, reason)
        while self.inner == "stacked" and name not in self.refused:
            try:
                if name not in self.width:
                    self.width[name] = self._measured(problem, exchange, cohort)
                pieces = self._stacked.pieces(cohort, self._cut or 1)
                job = _Job(problem, exchange, cohort, key, "stacked", sent, down, pieces, self.width[name])
                return merge(exchange, self._parts(job))
            except _TooMuchError as error:
                self._narrow(name, max(piece.numel() for piece in pieces), str(error))
            except _RefusedError as error:  # anything may refuse to stack; the serial run names a real mistake
                self._refuse(name, str(error))
        try:
            pieces = self._serial.pieces(cohort)
            return merge(
                exchange, self._parts(_Job(problem, exchange, cohort, key, "serial", sent, down, pieces, None))
            )
        except Exception:
            if not known:
                self.refused.pop(name, None)  # a mistake in the program, not something that will not stack
            raise

    def plan(self) -> dict[str, Any]:
        """What decides about rounding, and how many workers died. `workers` is None before the first exchange."""
        return {
            "workers": self._cut,
            "inner": self.inner,
            "width": dict(self.width),
            "refused": dict(self.refused),
            "deaths": self.deaths,
        }

    def restore(self, plan: dict[str, Any]) -> None:
        """Cut cohorts as the earlier run did, also if there are more or fewer workers now."""
        self._cut = plan.get("workers") or self._cut
        self.width.update(plan.get("width", {}))
        self.refused.update(plan.get("refused", {}))
        self.deaths = plan.get("deaths", self.deaths)

    def close(self) -> None:
        """End the workers, and Ray where it was started here."""
        seats, self._seats, self._sent = self._seats, [], []
        if not ray.is_initialized():
            return
        for seat in seats:
            with contextlib.suppress(RayError):
                ray.kill(seat.actor)
        if self._ours:
            with _aside():
                ray.shutdown()
            self._ours = False

    def _parts(self, job: _Job) -> Iterator[Part]:
        """The parts of all pieces, as the workers give them."""
        lanes, turn, done = len(job.pieces), 0, set[int]()
        queues, ahead = self._queues(job)
        flight: dict[Any, tuple[int, list[int], Tensor]] = {}
        idle = set(range(len(self._seats)))
        deaths = [0] * lanes
        failed: tuple[int, tuple[Any, ...]] | None = None
        part: Part | None = None
        while True:
            for worker in sorted(idle):
                taken = queues.take(worker, turn + ahead if failed is None else math.inf)
                if taken:
                    ref, rows = self._submit(job, worker, taken)
                    flight[ref] = (worker, taken, rows)
                    idle.discard(worker)
            if part is not None:  # only now, that the workers have something to do again
                yield part
                part = None
            if turn == lanes:
                return
            if failed is not None and not queues and all(taken[0] > failed[0] for _, taken, _ in flight.values()):
                raise_described(job.problem, *failed[1])
            ref = self._ready(list(flight))
            worker, taken, rows = flight.pop(ref)
            idle.add(worker)
            try:
                answer = ray.get(ref, timeout=_STARTING)
            except _GONE as error:
                clients = job.exchange.clients[rows].tolist()
                self._replace(worker, error, clients)
                if job.inner == "stacked" and isinstance(error, OutOfMemoryError):
                    raise _TooMuchError(line(error)) from error
                for lane in taken:
                    deaths[lane] += 1
                if max(deaths[lane] for lane in taken) >= DEATHS:
                    raise FedoptError(
                        f"{DEATHS} workers died at clients {_list(clients)} ({line(error)}); if memory ran out, lower"
                        " executor.memory_mb or executor.workers; executor.name = 'serial' shows what they do"
                    ) from error
                queues.back(worker, taken)
                continue
            except RayError as error:
                raise FedoptError(f"Ray could not run or answer a call: {error}") from error
            if "refused" in answer:
                raise _RefusedError(answer["refused"])
            if "too much" in answer:
                raise _TooMuchError(answer["too much"])
            if "error" in answer:
                # the serial executor meets the first client's error, so what comes before this one is run to its end
                lane = taken[answer["lane"]]
                if failed is None or lane < failed[0]:
                    failed = (lane, answer["error"])
                queues.drop(failed[0])
                continue
            self.serialised += nbytes(answer)
            self.warming |= answer["warming"]
            self._learn(job, worker, taken, answer["seconds"])
            done.update(taken)
            while turn in done:
                turn += 1
            part = part_of(answer, rows)

    def _queues(self, job: _Job) -> tuple[Queues, float]:
        """The lanes by worker, and how many may be ahead of the first that is not done."""
        kind, everybody = f"{job.inner} {job.exchange.program}", torch.cat(list(job.pieces))
        ids, samples = job.cohort.clients[everybody].tolist(), job.cohort.samples[everybody].double().numpy()
        sizes = [piece.numel() for piece in job.pieces]
        costs = np.add.reduceat(self._costs.of(kind, ids, samples), np.cumsum([0, *sizes[:-1]])).tolist()
        slowness = [self._costs.slowness.get(worker, 1.0) for worker in range(len(self._seats))]
        vector = _vector(job.problem, job.exchange)
        most = max(1, _BATCH // (vector * (max(sizes) if job.exchange.reduce == "rows" else 1)))
        known = costs if self._costs.known(kind) else None
        if job.exchange.reduce == "rows":
            return Queues(place(costs, slowness), known, CALL, most), math.inf
        # where a sum is large, workers take whole groups of lanes and answer with one sum for each
        together = GROUP if vector >= COPIED and len(sizes) >= 2 * GROUP * len(self._seats) else 1
        groups = [list(range(first, min(first + together, len(sizes)))) for first in range(0, len(sizes), together)]
        placed = place([sum(costs[lane] for lane in group) for group in groups], slowness)
        spread = [[lane for group in queue for lane in groups[group]] for queue in placed]
        ahead = together * max(2 * len(self._seats), _BATCH // vector)
        return Queues(spread, known, CALL, most, together), ahead

    def _learn(self, job: _Job, worker: int, lanes: list[int], seconds: list[float]) -> None:
        rows, sizes = torch.cat([job.pieces[lane] for lane in lanes]), [job.pieces[lane].numel() for lane in lanes]
        self._costs.learn(
            f"{job.inner} {job.exchange.program}",
            worker,
            job.cohort.clients[rows].tolist(),
            job.cohort.samples[rows].double().numpy(),
            sizes,
            np.array(seconds),
            history=job.inner == "serial",
        )

    def _submit(self, job: _Job, worker: int, lanes: list[int]) -> tuple[Any, Tensor]:
        """A call to a worker: the answer to come, and the rows of the exchange that the worker knows as 0, 1, ..."""
        seat = self._seats[worker]
        for sent in job.sent:
            if sent.number not in seat.sent:
                seat.actor.load.remote(sent.number, sent.packed, sent.of)
                seat.sent.add(sent.number)
        pieces = [job.pieces[lane] for lane in lanes]
        rows, places = torch.cat(pieces).sort()
        task = Task(
            programs=job.sent[1].number,
            program=job.exchange.program,
            clients=job.cohort.clients[rows].numpy(),
            order=places.argsort().numpy(),
            lanes=lanes,
            sizes=[piece.numel() for piece in pieces],
            own=arrays({name: value[rows] for name, value in job.cohort.own.items()}),
            memory=arrays({name: value[rows] for name, value in job.cohort.memory.items()}),
            batches=job.exchange.batches,
            reduce=job.exchange.reduce,
            key=int(job.key),
            inner=job.inner,
            width=job.width,
        )
        self.serialised += nbytes(task) + (0 if isinstance(job.down, ray.ObjectRef) else nbytes(job.down))
        return seat.actor.run.remote(job.down, task), rows

    def _ready(self, refs: list[Any]) -> Any:
        """The first of these to be answered."""
        while True:
            ready, _ = ray.wait(refs, num_returns=1, timeout=_PATIENCE)
            if ready:
                return ready[0]
            try:
                alive = ray.is_initialized() and any(node["Alive"] for node in ray.nodes())
            except Exception:
                alive = False
            if not alive:
                self._seats, self._sent = [], []
                raise FedoptError("the Ray cluster is gone; start it again, or remove executor.address")
            for seat in self._seats:
                if time.monotonic() - seat.since > _STARTING and not ray.wait([seat.pid], timeout=0)[0]:
                    raise _late()

    def _replace(self, worker: int, error: Exception, clients: list[int]) -> None:
        self.deaths += 1
        log.warning("worker %d died (%s); a new one runs clients %s again", worker, line(error), _list(clients))
        with contextlib.suppress(RayError):
            ray.kill(self._seats[worker].actor)
        self._seats[worker] = self._hire()

    def _refuse(self, program: str, reason: str) -> None:
        self.refused[program] = reason
        log.warning("program '%s' runs one client at a time: it cannot be stacked (%s)", program, reason)

    def _narrow(self, program: str, largest: int, reason: str) -> None:
        width = min(self.width[program], largest)
        if width == 1:
            raise FedoptError(
                f"program '{program}' does not fit the memory of a worker for one client alone ({reason}); lower"
                " executor.workers, raise executor.worker_memory_mb, or take a smaller batch"
            )
        self.width[program] = width // 2
        log.warning("memory ran out in program '%s' with %d clients at a time; now %d", program, width, width // 2)

    def _measured(self, problem: Problem, exchange: Exchange, cohort: Cohort) -> int:
        try:
            return self._stacked.measure(problem, exchange, cohort)
        except Exception as error:
            raise _RefusedError(f"{type(error).__name__}: {line(error)}") from error

    def _shared(self, value: Any) -> Any:
        """What goes to many workers: itself if it is small, else once into the object store."""
        size = nbytes(value)
        if size <= _INLINE:
            return value
        self.serialised += size
        return ray.put(value)

    def _send(self, problem: Problem, programs: Programs, exchange: Exchange) -> tuple[_Sent, _Sent]:
        """The problem and its programs in the form that workers load, made once for as long as they are in use."""
        if self._seats and not ray.is_initialized():
            self._seats, self._sent, self._ours = [], [], False
        owner = self._found(problem, None)
        if owner is None:
            packed, tensors = _pack(problem)
            if not self._seats:
                self._start(nbytes(packed), problem, exchange)
            owner = self._keep(_Sent(next(self._numbers), problem, self._shared(packed), tensors))
        work = self._found(programs, owner.number)
        if work is None:
            there = {id(value): number for number, value in enumerate((problem, *owner.tensors))}
            packed, _ = _pack(programs, there)
            work = self._keep(_Sent(next(self._numbers), programs, self._shared(packed), [], owner.number))
        return owner, work

    def _found(self, value: Any, of: int | None) -> _Sent | None:
        """What was sent already, as the last that was used."""
        for sent in self._sent:
            if sent.value is value and sent.of == of:
                self._sent.remove(sent)
                self._sent.append(sent)
                return sent
        return None

    def _keep(self, sent: _Sent) -> _Sent:
        """Remember what is sent, and forget what was not used for long."""
        self._sent.append(sent)
        alike = [one for one in self._sent if (one.of is None) == (sent.of is None)]
        for old in alike[:-_KEPT]:
            for gone in [one for one in self._sent if old.number in (one.number, one.of)]:
                self._sent.remove(gone)
                for seat in self._seats:
                    if gone.number in seat.sent:
                        seat.sent.discard(gone.number)
                        seat.actor.forget.remote(gone.number)
        return sent

    # the pool

    def _start(self, data: int, problem: Problem, exchange: Exchange) -> None:
        """Connect to Ray, or start it, and fill the pool."""
        wanted = self.workers
        if not ray.is_initialized():
            if self.address is None and wanted is None and not self.gpus_per_worker:
                wanted = max(1, cores() // self.threads)
            answers = exchange.clients.numel() * _vector(problem, exchange)
            self._connect(2 * data + 4 * answers, wanted or 1)
            self._ours = True
        there = ray.cluster_resources()
        able = int(there.get("CPU", 0.0) / self.threads + 1e-9)
        if self.gpus_per_worker:
            able = min(able, int(there.get("GPU", 0.0) / self.gpus_per_worker + 1e-9))
        if self.worker_memory_mb:
            able = min(able, int(there.get("memory", 0.0) / (self.worker_memory_mb * 2**20)))
        if able < max(wanted or 1, 1):
            raise ConfigError(
                "executor.workers",
                f"{wanted or 1} were asked for, Ray has room for {able} (CPU {there.get('CPU', 0):g}, GPU"
                f" {there.get('GPU', 0):g}, memory {there.get('memory', 0) / 2**20:.0f} MB); lower it, or what each"
                " needs: executor.threads, executor.gpus_per_worker, executor.worker_memory_mb",
            )
        self._cut = self._cut or wanted or able
        self._seats = [self._hire() for _ in range(wanted or able)]
        ray.wait([seat.pid for seat in self._seats], num_returns=len(self._seats), timeout=_STARTING)
        try:
            ray.get([seat.pid for seat in self._seats], timeout=0.0)
        except GetTimeoutError:
            self.close()
            raise _late() from None
        except RayError as error:
            raise FedoptError(f"a worker could not start (is fedopt installed on every node?): {error}") from error

    def _hire(self) -> _Seat:
        options: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": self.gpus_per_worker}
        if self.worker_memory_mb:
            options["memory"] = int(self.worker_memory_mb * 2**20)
        # Ray would keep a record of every call
        actor = ray.remote(Worker).options(**options, max_restarts=0, enable_task_events=False)
        return _Seat(actor.remote(self.memory_mb, self.device, self.precision, self.threads, self.worker_memory_mb))

    def _connect(self, wanted: int, workers: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that it is about to change
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        limit = memory_limit() // 4
        with contextlib.suppress(OSError):
            limit = min(limit, shutil.disk_usage("/dev/shm").free * 9 // 10)
        with _aside():
            if self.address is not None:
                host, _, port = self.address.rpartition("//")[2].rpartition(":")
                try:
                    if host and port.isdigit():  # Ray would try for many minutes
                        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
                    ray.init(self.address, **quiet)
                except (OSError, ValueError, RuntimeError) as error:
                    raise ConfigError(
                        "executor.address", f"no Ray cluster at '{self.address}': {line(error)}"
                    ) from error
                return
            ray.init(
                "local",
                num_cpus=POOLS * max(workers * self.threads, cores()),
                object_store_memory=max(min(max(wanted, 256 << 20), limit), 80 << 20),
                include_dashboard=False,
                _system_config={
                    "max_direct_call_object_size": 1 << 20,
                    "task_events_report_interval_ms": 0,
                    "worker_niceness": 0,
                },
                **quiet,
            )


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Keep the process as it is while Ray starts or ends: its signal handlers, and its warnings about open files."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
            gc.collect()  # else the files are met later, in somebody else's code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc, unused-ignore]  # Ray may be absent
    """Pickles with tensors out of band, and with a number in place of what the other side has already."""

    def __init__(self, file: io.BytesIO, buffers: list[Any], there: dict[int, int]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)  # type: ignore[no-untyped-call, unused-ignore]
        self.there = there
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        return self.there.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.device.type == "cpu" and value.layout == torch.strided):
            return super().reducer_override(value)  # type: ignore[no-untyped-call, unused-ignore]
        self.tensors.append(value)
        raw: Any = value.detach().contiguous().flatten().view(torch.uint8).numpy()
        dtype = str(value.dtype).removeprefix("torch.")
        return rebuilt, (
            pickle.PickleBuffer(raw),
            dtype,
            tuple(value.shape),
            isinstance(value, nn.Parameter),
            value.requires_grad,
        )


def _pack(value: Any, there: dict[int, int] = {}) -> tuple[Packed, list[Tensor]]:  # noqa: B006 - read-only
    """`value` and the list of its tensors as bytes and buffers. there: numbers by id of what the other side has."""
    file, buffers = io.BytesIO(), list[Any]()
    pickler = _Pickler(file, buffers, there)
    try:
        # the list is whole by its turn, and refers to what was written before
        pickler.dump((value, pickler.tensors))  # type: ignore[no-untyped-call, unused-ignore]
    except Exception as error:
        raise FedoptError(
            f"the experiment cannot be sent to Ray's workers: {type(error).__name__}: {line(error)}; mend that, or"
            " take executor.name = 'stacked'"
        ) from error
    return (file.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]), pickler.tensors


def _vector(problem: Problem, exchange: Exchange) -> int:
    """About how many bytes a client's vectors have: those of the model, or of what is sent down if that is more."""
    sent = sum(value.nbytes for value in exchange.down.values())
    return max(problem.d * problem.dtype.itemsize, sent, 1)


def _late() -> FedoptError:
    return FedoptError(
        f"a worker did not start within {_STARTING:.0f} s: Ray has no room for it (free: {ray.available_resources()});"
        " lower executor.workers, or end what uses the cluster"
    )


def _list(clients: list[int]) -> str:
    """A few of them."""
    return ", ".join(map(str, clients[:8])) + (f" and {len(clients) - 8} more" if len(clients) > 8 else "")
