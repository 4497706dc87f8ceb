"""A worker process's half of an exchange: lanes of clients in, a part or an error out, as arrays and plain data.

Nothing here knows how the data travels; `fedopt.engine.ray` does.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import resource
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fedopt.engine import trace
from fedopt.engine.allocator import keep_freed
from fedopt.engine.cohort import assemble
from fedopt.engine.collect import GROUP, Part, Span, Sum, fold, join
from fedopt.engine.serial import ClientError, Serial
from fedopt.engine.stacked import Precision, Stacked
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Exchange, FedoptError, Named, Programs, Rejection

COPIED = 1 << 20
"""Arrays of so many bytes are read where they lie, in memory that workers share, and never written."""

Packed = tuple[bytes, list[Any]]
"""A pickle and its buffers."""

Arrays = dict[str, Any]
"""Arrays by name; of a dtype that numpy has not, its name and the words."""


def rebuilt(buffer: Any, dtype: str, shape: tuple[int, ...], parameter: bool, grad: bool) -> Tensor:
    """A tensor out of the buffer of a pickle."""
    kind = getattr(torch, dtype)
    # of nothing, not even another type can be had
    tensor = (
        _tensor(np.frombuffer(buffer, np.uint8)).view(kind).reshape(shape)
        if len(buffer)
        else torch.empty(shape, dtype=kind)
    )
    return nn.Parameter(tensor, requires_grad=grad) if parameter else tensor.requires_grad_(grad)


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: Packed, here: list[Any]) -> None:
        super().__init__(io.BytesIO(packed[0]), buffers=packed[1])
        self.here = here

    def persistent_load(self, number: Any) -> Any:
        return self.here[number]


def _tensor(array: Any) -> Tensor:
    """A tensor of an array out of Ray; large ones stay where they are in shared memory, and are never written."""
    dtype = None
    if isinstance(array, tuple):
        dtype, array = array
    # where a matrix starts within a cache line decides how its products round, so everything starts as torch has it
    if array.nbytes < COPIED or array.ctypes.data % 64:
        tensor = torch.from_numpy(array.copy()).clone()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it cannot be written
            tensor = torch.from_numpy(array)
    return tensor if dtype is None else tensor.view(getattr(torch, dtype))


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return "bfloat16", tensor.view(torch.int16).numpy()
    return tensor.numpy()


def arrays(named: Named) -> Arrays:
    """Tensors as arrays, without a copy of those that are on the CPU."""
    return {name: _array(value) for name, value in named.items()}


def _tensors(arrays: Arrays) -> Named:
    return {name: _tensor(array) for name, array in arrays.items()}


def nbytes(value: Any) -> int:
    """Bytes of the arrays and pickles in a nest of dicts, lists and tuples."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(nbytes(one) for one in value.values())
    return sum(nbytes(one) for one in value) if isinstance(value, list | tuple) else 0


class Task(NamedTuple):
    """A call: some lanes of an exchange."""

    programs: int
    program: str
    clients: Any
    """Ids `[k]` in increasing order."""
    order: Any
    """Rows of `clients`, lane after lane."""
    lanes: list[int]
    """Numbers of the lanes within the exchange."""
    sizes: list[int]
    """How many of `order` each lane has."""
    own: Arrays
    memory: Arrays
    batches: Any
    reduce: Literal["rows", "mean"]
    key: int
    inner: str
    width: int | None


class Worker:
    """What runs in an actor: problems and programs by number, and an executor of either kind."""

    def __init__(self, memory_mb: float, device: str, precision: Precision, threads: int, cap_mb: float | None) -> None:
        torch.set_num_threads(threads)
        self._inner: dict[str, Any] = {"serial": Serial(), "stacked": Stacked(memory_mb, device, precision)}
        self._problems: dict[int, tuple[Problem, list[Any]]] = {}
        self._programs: dict[int, tuple[Problem, Programs]] = {}
        self._failed = ""
        gc.freeze()  # else every full collection looks through all that torch has imported, for a tenth of a second
        if cap_mb is not None and device == "cpu":
            trace.load()
            _cap(int(cap_mb * 2**20))
        else:
            keep_freed()

    def pid(self) -> int:
        """Of this process, for whoever wants to watch it."""
        return os.getpid()

    def load(self, number: int, packed: Packed, of: int | None) -> None:
        """A problem, or the programs of problem `of`."""
        try:
            if of is None:
                problem, tensors = _Unpickler(packed, []).load()
                self._problems[number] = (problem, [problem, *tensors])
            else:
                known, here = self._problems[of]
                self._programs[number] = (known, _Unpickler(packed, here).load()[0])
        except Exception as error:
            self._failed = f"{type(error).__name__}: {error}"

    def forget(self, number: int) -> None:
        """Let go of a problem or of programs."""
        self._programs.pop(number, None)
        self._problems.pop(number, None)

    def run(self, down: Arrays, task: Task) -> dict[str, Any]:
        """The part of these lanes, or what went wrong, as plain data."""
        seconds: list[float] = []
        if task.programs not in self._programs:
            return {"lane": 0, "error": ("fedopt", f"a worker cannot load the experiment: {self._failed}", "")}
        try:
            return self._part(_tensors(down), task, seconds)
        except Exception as error:
            if task.inner == "serial":
                return {"lane": len(seconds), "error": _described(error)}
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return {"too much" if _is_memory(error) else "refused": f"{type(error).__name__}: {line(error)}"}

    def _part(self, down: Named, task: Task, seconds: list[float]) -> dict[str, Any]:
        problem, programs = self._programs[task.programs]
        inner = self._inner[task.inner]
        inner.restore({"width": {task.program: task.width}})  # the serial one has no use for it
        clients, own = _tensor(task.clients), _tensors(task.own)
        exchange = Exchange(task.program, clients, down, own, task.batches, task.reduce)
        cohort = assemble(problem, exchange, _tensors(task.memory), torch.tensor(task.key))
        parts: list[Part] = []
        sums: dict[Span, Sum] = {}
        began = time.perf_counter()
        pieces = _tensor(task.order).split(task.sizes)
        for lane, part in zip(task.lanes, inner.parts(problem, programs, exchange, cohort, pieces), strict=True):
            parts.append(part)
            for one in part.sums.values():
                sums[lane, lane + 1] = one
            sums = fold(sums)
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        names = next(iter(sums.values())).vectors if sums else ()
        return {
            "where": _array(torch.cat([part.where for part in parts])),
            "vectors": arrays(join([part.vectors for part in parts])),
            "spans": list(sums),
            "sums": {name: _rows([one.vectors[name] for one in sums.values()]) for name in names},
            "sum_weights": _array(torch.stack([one.weight for one in sums.values()])) if sums else None,
            "weights": _array(torch.cat([part.weights for part in parts])),
            "metrics": arrays(join([part.metrics for part in parts])),
            "memory": arrays(join([part.memory for part in parts])),
            "rejected": [tuple(rejection) for part in parts for rejection in part.rejected],
            "seconds": seconds,
            "warming": inner.warming,
        }


def part_of(answer: dict[str, Any], rows: Tensor) -> Part:
    """A worker's answer, with the rows of the whole exchange."""
    sums: dict[Span, Sum] = {}
    if answer["spans"]:
        weights = _tensor(answer["sum_weights"])
        vectors = {
            name: [_tensor(row) for row in value] if isinstance(value, list) else _tensor(value)
            for name, value in answer["sums"].items()
        }
        for i, (first, after) in enumerate(answer["spans"]):
            # others are added to the first of all and to the first of a group, in place
            written = first == 0 or (first % GROUP == 0 and after == first + 1)
            one = {name: value[i].clone() if written else value[i] for name, value in vectors.items()}
            sums[first, after] = Sum(one, weights[i])
    return Part(
        rows[_tensor(answer["where"])],
        _tensors(answer["vectors"]),
        sums,
        _tensor(answer["weights"]),
        _tensors(answer["metrics"]),
        _tensors(answer["memory"]),
        tuple(Rejection(*rejection) for rejection in answer["rejected"]),
    )


def _rows(rows: list[Tensor]) -> Any:
    """A row for each sum: one array of small ones, for every array costs; large ones as they are, without a copy."""
    return [_array(row) for row in rows] if rows[0].nbytes >= COPIED else _array(torch.stack(rows))


def line(error: BaseException) -> str:
    """The first line of its message."""
    return str(error).strip().partition("\n")[0]


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error) for t in ("can't allocate memory", "out of memory"))


def _described(error: Exception) -> tuple[Any, ...]:
    """An exception as plain data: its kind, its message, its traceback, and what its kind has besides."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, ClientError):
        cause = error.__cause__
        return "client", str(cause), trace, error.client, error.program, error.stage, type(cause).__name__
    if isinstance(error, ConfigError):
        return "config", str(error).removeprefix(f"{error.where}: "), trace, error.where
    if isinstance(error, FedoptError):
        return "fedopt", str(error), trace
    return "fedopt", f"a worker failed: {type(error).__name__}: {error}", trace


def raise_described(problem: Problem, kind: str, message: str, trace: str, *more: Any) -> NoReturn:
    """The exception that `_described` described."""
    error: FedoptError
    cause: Exception | None = None
    if kind == "client":
        client, program, stage, name = more
        cause = type(name, (Exception,), {})(message)
        error = ClientError(problem.data.name(client), client, program, stage, cause)
    else:
        error = ConfigError(more[0], message) if kind == "config" else FedoptError(message)
    if trace:
        error.add_note(f"in a worker:\n{trace}")
    raise error from cause


def _cap(more: int) -> None:
    """Let this process allocate so many bytes more than it has now; memory that is shared does not count."""
    facts = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    limit = int(facts["VmData"].split()[0]) * 1024 + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
