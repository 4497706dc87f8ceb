"""A run in its folder: started or resumed, recorded, checkpointed, ended.

The folder always says what happened: `run.json` has the status, `metrics.jsonl` every whole exchange, `checkpoints/` a
point from which the run can go on.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from fedopt import config as configs
from fedopt import keys
from fedopt.compressed import bare
from fedopt.config import Config, Stop
from fedopt.engine import evaluate
from fedopt.engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, misfit, newest, save_checkpoint
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.record import (
    Metrics,
    RecordError,
    describe_partition,
    exchange_line,
    named_model,
    write_bytes,
    write_json,
    write_text,
)
from fedopt.engine.serial import ClientError
from fedopt.registry import ConfigError, facts
from fedopt.setup import Setup
from fedopt.types import Named, Programs, State

log = logging.getLogger(__name__)

Callback = Callable[[dict[str, Any]], object]
"""Called with each line of the record; a true return value ends the run after that exchange."""

ALL_ROUNDS = "all rounds done"

EARLY = ("run.json", "deployment.json", "server.log")
"""Files of a run folder that may be there before the run has begun."""


class Result(NamedTuple):
    """What a run leaves: its record, its final model (a state_dict, None without a common model), its folder."""

    history: list[dict[str, Any]]
    model: Named | None
    path: Path
    status: str
    reason: str
    state: State
    setup: Setup

    @property
    def final(self) -> dict[str, Any]:
        """The last line with an evaluation."""
        return next((line for line in reversed(self.history) if "loss" in line or "client_eval" in line), {})

    def module(self) -> nn.Module:
        """The network with the final model in it."""
        module = self.setup.problem.network.inference
        if self.model is not None:
            module.load_state_dict(self.model, strict=False)  # keys of dropout are no part of the model
        return module


@dataclass
class Progress:
    """Where a run is: what `exchanges` would go on from."""

    state: State
    memory: ClientMemory
    exchanges: int = 0
    """Whole exchanges done."""
    restored: int = 0
    """How many of them an earlier process did."""
    programs: Programs | None = None
    """The clients' halves, made once: executors hold on to what they made of them."""


def beginning(setup: Setup) -> Progress:
    """The state before the first exchange."""
    programs = setup.strategy.programs(setup.problem)
    memory = ClientMemory(programs.memory, setup.problem.clients, setup.config.executor.client_memory_mb)
    return Progress(setup.strategy.init(setup.problem, keys.fold(setup.key, "init")), memory, programs=programs)


def restore(setup: Setup, progress: Progress, stored: Checkpoint) -> None:
    """Go to a checkpoint; the executor takes over the plan that was stored with it.

    Raises CheckpointError for a state of another form, which is left as it is.
    """
    wrong = misfit(progress.state, stored.state)
    if wrong:
        raise CheckpointError(
            f"the checkpoint after exchange {stored.exchanges} was written by another version of fedopt or of a plug-in"
            f" ({wrong}); resume with that version, or start a new run in another folder"
        )
    progress.memory.restore(stored.memory)
    progress.state = stored.state
    progress.exchanges = progress.restored = stored.exchanges
    setup.executor.restore(stored.run["executor"])


def execute(
    setup: Setup,
    out: str | Path | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> Result:
    """Run an experiment in its folder from the start, or from the newest checkpoint.

    A finished run has status `finished` (all rounds), `stopped` (early stopping or a callback), `interrupted` (by the
    user) or `failed`; the last two leave a checkpoint of the last whole exchange and can be resumed.
    """
    folder = Path(out or setup.config.run.out or Path("runs") / setup.config.run.name)
    run = setup.config.run.model_copy(update={"out": str(folder)})
    setup = setup._replace(config=setup.config.model_copy(update={"run": run}))
    progress = beginning(setup)
    known_run(folder) if resume else _claim(folder)
    with _alone(folder), threads(setup.config.executor.threads):
        try:
            if resume:
                _go_on(setup, folder, progress)
            return _execute(setup, folder, progress, callbacks)
        finally:
            setup.executor.close()


def _execute(setup: Setup, folder: Path, progress: Progress, callbacks: Sequence[Callback]) -> Result:
    started = datetime.now(UTC).isoformat(timespec="seconds")

    def note(status: str, reason: str) -> None:
        write_json(folder / "run.json", _about(setup, status, reason, started))

    note("running", "")
    write_text(folder / "config.toml", setup.config.to_toml())  # after run.json: from here on, the folder is a run's
    write_json(folder / "partition.json", describe_partition(setup.problem, setup.adversary))
    with Metrics(folder / "metrics.jsonl", before=progress.exchanges) as metrics, _patient_interrupt() as interrupted:
        try:
            status, reason = _federate(setup, folder, progress, metrics, callbacks, interrupted)
            _checkpoint(setup, folder, progress, metrics)
            published = setup.strategy.model(setup.problem, progress.state)
            model = named_model(setup.problem, published) if published is not None else None
            if model is not None:
                write_bytes(folder / "model.safetensors", save(model))
        except BaseException as error:
            numbered = isinstance(error, ClientError) and error.exchange is not None
            where = "" if numbered else f"exchange {progress.exchanges}: "
            status, reason = "failed", f"{where}{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                status, reason = "interrupted", "by the user, within an exchange; continue with 'fedopt resume'"
            if isinstance(error, ClientError):
                error.add_note(
                    f"look at it with: fedopt replay {folder} --exchange {progress.exchanges} --client {error.client}"
                )
            # a line that is missing, or memory that may be half committed, would make a checkpoint that skips something
            done = progress.exchanges
            whole = len(metrics.lines) == done and progress.memory.commits == done - progress.restored
            if done > progress.restored and whole:
                with contextlib.suppress(Exception):
                    _checkpoint(setup, folder, progress, metrics)
            with contextlib.suppress(RecordError):
                note(status, reason)
            raise
        note(status, reason)
    return Result(metrics.lines, model, folder, status, reason, progress.state, setup)


def _federate(
    setup: Setup,
    folder: Path,
    progress: Progress,
    metrics: Metrics,
    callbacks: Sequence[Callback],
    interrupted: threading.Event,
) -> tuple[str, str]:
    """Exchange after exchange until the run is over; returns status and reason."""
    problem, run = setup.problem, setup.config.run
    steps = exchanges(
        problem,
        setup.strategy,
        setup.executor,
        setup.adversary,
        progress.memory,
        progress.state,
        setup.key,
        progress.exchanges,
        setup.availability,
    )
    earlier = metrics.lines[-1]["elapsed"] if metrics.lines else 0.0
    started = saved = time.monotonic()
    while True:
        reason = _ended(setup.config, metrics.lines, progress.state)
        if reason:
            return ("finished" if reason == ALL_ROUNDS else "stopped"), reason
        before = progress.state.round
        step = next(steps)
        progress.state, progress.exchanges = step.state, step.number + 1
        line = exchange_line(step, setup.codec)
        began = time.perf_counter()
        line |= _evaluation(setup, progress, before)
        line["seconds"]["evaluate"] = time.perf_counter() - began
        line["elapsed"] = earlier + time.monotonic() - started
        line = metrics.append(line)
        asked_to_stop = [bool(callback(line)) for callback in callbacks]
        due = run.checkpoint_every and progress.exchanges % run.checkpoint_every == 0
        if due or time.monotonic() - saved > run.checkpoint_seconds:
            saved = time.monotonic()
            try:
                _checkpoint(setup, folder, progress, metrics)
            except CheckpointError as error:
                log.warning("%s; the run goes on", error)
        if any(asked_to_stop) or interrupted.is_set():
            reason = _ended(setup.config, metrics.lines, progress.state)
            if reason:
                continue
            if any(asked_to_stop):
                return "stopped", "a callback asked to stop"
            return "interrupted", "by the user; continue with 'fedopt resume'"


def _evaluation(setup: Setup, progress: Progress, before: int) -> dict[str, Any]:
    """What is measured after an exchange that ended a round, if that round is due; `before` is the round before it."""
    problem, run, state = setup.problem, setup.config.run, progress.state
    found: dict[str, Any] = {}
    if state.round == before:
        return found

    def due(every: int, last: int = 1) -> bool:
        return bool(every) and (state.round % every == 0 or state.round > run.rounds - last)

    model, vertical = setup.strategy.model(problem, state), facts(type(bare(setup.strategy))).get("vertical")
    if vertical and due(run.evaluate_every, run.evaluate_last or 1):
        programs = progress.programs or setup.strategy.programs(problem)
        found |= evaluate.on_parties(
            problem, bare(setup.strategy), programs, setup.executor, progress.memory, state, setup.key
        )
    if due(run.evaluate_every, run.evaluate_last or 1) and model is not None:
        device = setup.config.executor.device
        there = {name: value.to(device) for name, value in model.items()}
        found |= evaluate.on_server(setup.evaluated, there)
        backdoors = evaluate.on_backdoors(setup.evaluated, there, (g.attack for g in setup.adversary.groups))
        if backdoors:
            found["backdoor"] = backdoors
    if due(run.evaluate_clients_every):
        programs = progress.programs or setup.strategy.programs(problem)
        everybody = torch.arange(problem.clients)
        found["client_eval"] = evaluate.on_clients(
            problem, programs, setup.executor, progress.memory, model, everybody, setup.key
        )
    return found


def _checkpoint(setup: Setup, folder: Path, progress: Progress, metrics: Metrics) -> None:
    metrics.sync()
    document = setup.config.document()
    document["run"].pop("out", None)  # a run folder may be moved
    run = {"config": document, "executor": setup.executor.plan()}
    stored = Checkpoint(progress.exchanges, progress.state, progress.memory.save(folder / "checkpoints"), run)
    save_checkpoint(folder / "checkpoints", stored, setup.config.run.keep_checkpoints)
    if setup.checkpointed is not None:
        setup.checkpointed(progress.memory)


def _ended(config: Config, lines: list[dict[str, Any]], state: State) -> str:
    """Why the run is over, or the empty string: a function of the record, so that a resumed run decides alike."""
    if state.round >= config.run.rounds:
        return ALL_ROUNDS
    return early_stop(config.run.stop, lines)


def early_stop(stop: Stop | None, lines: Sequence[Mapping[str, Any]]) -> str:
    """Why `stop` ends a run with these lines, or the empty string."""
    found = [] if stop is None else [line[stop.metric] for line in lines if stop.metric in line]
    if stop is None or not found:
        return ""
    sign = -1.0 if stop.metric == "loss" else 1.0
    values = [-float("inf") if value is None else sign * value for value in found]  # None stands for NaN
    if stop.target is not None and values[-1] >= sign * stop.target:
        return f"{stop.metric} {found[-1]:.4g} reached the target {stop.target:.4g}"
    if stop.patience is not None:
        best, since = -float("inf"), 0
        for value in values:
            best, since = (value, 0) if value > best + stop.min_delta else (best, since + 1)
        if since >= stop.patience:
            return f"{stop.metric} did not improve on {sign * best:.4g} in {since} evaluations"
    return ""


def is_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return all((folder / name).exists() for name in ("run.json", "config.toml"))


def known_run(folder: Path) -> None:
    """Raise ConfigError for a folder without a run."""
    if not is_run(folder):
        raise ConfigError("run.out", f"{folder} is no run folder: it has no run.json and config.toml")


def _claim(folder: Path) -> None:
    """Make the folder of a new run; an empty one may be there."""
    other = "give another with --set run.out=DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a run that was killed at its very start leaves drafts, and a run.json alone
        taken = any(not path.name.startswith(".") and path.name not in EARLY for path in folder.iterdir())
    except OSError as error:
        raise ConfigError("run.out", f"the folder {folder} cannot be made ({error}); {other}") from error
    if is_run(folder):
        raise ConfigError(
            "run.out", f"the folder {folder} holds a run already; continue it with 'fedopt resume {folder}', or {other}"
        )
    if taken:
        raise ConfigError("run.out", f"the folder {folder} is not empty; {other}")


def _go_on(setup: Setup, folder: Path, progress: Progress) -> None:
    """Take up the run in a folder, if its config allows what this one asks for."""
    found = newest(folder / "checkpoints")
    stored = load_checkpoint(found) if found is not None else None
    asked_then = (
        stored.run["config"] if stored is not None else tomllib.loads((folder / "config.toml").read_text("utf-8"))
    )
    changed = configs.differences(configs.parse(asked_then), setup.config)
    wrong = {path: values for path, values in changed.items() if not path.startswith(configs.CHANGEABLE)}
    if wrong:
        where, (old, new) = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(
            where,
            f"the run was started with {old!r}; a resumed run cannot change it to {new!r}{more}."
            " Put it back, or start a new run in another folder",
        )
    if stored is None:
        return
    model = setup.strategy.model(setup.problem, stored.state)
    if model is not None and model["params"].numel() != setup.problem.d:
        raise ConfigError(
            "model",
            f"the checkpoint holds a model of {model['params'].numel()} parameters and this one has {setup.problem.d};"
            " resume with the model that the run was started with",
        )
    restore(setup, progress, stored)


def _about(setup: Setup, status: str, reason: str, started: str) -> dict[str, Any]:
    """run.json."""
    plan = setup.executor.plan()
    refused, chosen = (
        "; ".join(f"{program}: {why}" for program, why in plan.get(kind, {}).items()) for kind in ("refused", "reason")
    )
    return {
        "name": setup.config.run.name,
        "status": status,
        "reason": reason,
        "fedopt": version("fedopt"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "started": started,
        "executor": {**plan, "name": setup.executor.name, "reason": refused or chosen or "as configured"},
        "parameters": setup.problem.d,
        "rounds": setup.config.run.rounds,
        "strategy": setup.config.strategy.name,
        "portable": setup.portable,
        **({} if setup.privacy is None else {"privacy": setup.privacy}),
    }


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads: another number sums in another order, which is another rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go of it when the process ends, however it ends."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("run.out", f"another process is running in {folder}; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _patient_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM lets the exchange in hand finish; the second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        log.warning("stopping after this exchange; Ctrl-C once more stops at once")

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
