"""From a config to a run: build, check, run, resume, replay.

`run(config)` and `Experiment(...)` are the Python interface; the command line calls the same functions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedopt import aggregators, attacks, compression, data, keys, models, optimizers, participation, strategies
from fedopt import config as configs
from fedopt.config import Config, Stop
from fedopt.data import Dataset, Federation, federate, pool
from fedopt.engine import evaluate
from fedopt.engine.adversary import Adversary, Group
from fedopt.engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest, save_checkpoint
from fedopt.engine.cohort import assemble
from fedopt.engine.loop import Executor, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.record import (
    Metrics,
    RecordError,
    describe_partition,
    exchange_line,
    named_model,
    read_lines,
    write_bytes,
    write_json,
    write_text,
)
from fedopt.engine.serial import ClientError, Serial, run_client
from fedopt.engine.stacked import Stacked
from fedopt.problem import LOSSES, Network, Problem
from fedopt.registry import ConfigError, facts, parameters
from fedopt.types import Batches, Codec, Exchange, Named, State, Strategy, Uplink

log = logging.getLogger(__name__)

Callback = Callable[[dict[str, Any]], object]
"""Called with each line of the record; a true return value ends the run after that exchange."""


class Setup(NamedTuple):
    """An experiment that is ready to run."""

    config: Config
    problem: Problem
    strategy: Strategy
    executor: Executor
    adversary: Adversary
    codec: Codec
    key: Tensor
    portable: bool
    """False if it holds objects that only Python code can give back (own module, own data, own strategy)."""


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
class Experiment:
    """An experiment in Python: every part is a name, a table of options as in the config file, or an own object.

        result = Experiment(model=MyNet(), data="digits", strategy="fedavg", optimizer={"name": "sgd", "lr": 0.1},
                            data_options={"clients": 50}, run_options={"rounds": 20}).run("runs/mine")

    model: also an `nn.Module`; data: also a `Dataset` or a `Federation`; strategy: also a strategy value.
    callbacks: called with each line of the record.
    """

    model: str | Mapping[str, Any] | nn.Module = "mlp"
    data: str | Mapping[str, Any] | Dataset | Federation = "digits"
    strategy: str | Mapping[str, Any] | Strategy = "fedavg"
    participation: str | Mapping[str, Any] | None = None
    aggregator: str | Mapping[str, Any] | None = None
    attack: Sequence[Mapping[str, Any]] = ()
    compression: str | Mapping[str, Any] = "none"
    optimizer: str | Mapping[str, Any] | None = None
    executor: str | Mapping[str, Any] = "stacked"
    run_options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()

    def setup(self) -> Setup:
        """Build and check, without running."""
        document: dict[str, Any] = {"run": dict(self.run_options), "attack": [dict(a) for a in self.attack]}
        for name in (
            "model",
            "data",
            "strategy",
            "participation",
            "aggregator",
            "compression",
            "optimizer",
            "executor",
        ):
            value = getattr(self, name)
            if isinstance(value, str):
                document[name] = {"name": value}
            elif isinstance(value, Mapping):
                document[name] = dict(value)
        document.setdefault("data", {}).update(self.data_options)
        objects: dict[str, Any] = {}
        if isinstance(self.model, nn.Module):
            objects["model"] = self.model
        if isinstance(self.data, Dataset | Federation):
            objects["data"] = self.data
        if not isinstance(self.strategy, str | Mapping):
            objects["strategy"] = self.strategy
        return build(configs.load(document), **objects)

    def run(self, out: str | Path | None = None) -> Result:
        """Run to the end; the folder is `out`, or that of the config."""
        return execute(self.setup(), out, callbacks=self.callbacks)

    def resume(self, out: str | Path) -> Result:
        """Continue the run in `out`."""
        return execute(self.setup(), out, callbacks=self.callbacks, resume=True)


def run(
    config: str | Path | Mapping[str, Any] | Config,
    changes: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Run an experiment from a config file, a dict or a Config; returns its record and its model."""
    return execute(build(configs.load(config, changes)), out, callbacks=callbacks)


def build(
    config: Config,
    *,
    model: nn.Module | None = None,
    data: Dataset | Federation | None = None,
    strategy: Strategy | None = None,
) -> Setup:
    """Everything that a config describes, checked; objects take the place of their sections."""
    torch.set_num_threads(config.executor.threads)
    key = keys.root(config.run.seed)
    dtype = getattr(torch, config.run.dtype)
    federation = data if isinstance(data, Federation) else _federation(config, data, key)
    portable = model is None and data is None and strategy is None
    if strategy is None:
        strategy = _strategy(config)
    if facts(type(strategy)).get("pooled"):
        federation = pool(federation)
    federation = _cast(federation, dtype)
    adversary = _adversary(config, federation.clients, key)
    federation = adversary.poison(federation, keys.fold(key, "poison"))
    problem = _problem(config, federation, model, key, dtype)
    executor = Serial() if config.executor.name == "serial" else Stacked(config.executor.memory_mb)
    codec = compression.build(config.compression.name, config.compression.options)
    setup = Setup(config, problem, strategy, executor, adversary, codec, key, portable)
    _check(setup)
    return setup


def _federation(config: Config, dataset: Dataset | None, key: Tensor) -> Federation:
    section = config.data
    if dataset is None:
        source = data.registry.get(section.name, "data.name")
        dataset = source(**data.registry.validate(section.name, section.options, "data"))
    if isinstance(dataset, Federation):
        return dataset
    return federate(
        dataset,
        clients=section.clients,
        partition=section.partition.name,
        partition_options=section.partition.options,
        test_share=section.test_share,
        valid_share=section.valid_share,
        trial_samples=section.trial_samples,
        key=keys.fold(key, "data"),
    )


def _cast(federation: Federation, dtype: torch.dtype) -> Federation:
    """Floating features and labels in the run's dtype."""

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    splits = {n: s._replace(x=cast(s.x), y=cast(s.y)) for n, s in federation.splits.items()}
    server = {n: s._replace(x=cast(s.x), y=cast(s.y)) for n, s in federation.server.items()}
    return federation._replace(splits=splits, server=server)


def _problem(
    config: Config, federation: Federation, module: nn.Module | None, key: Tensor, dtype: torch.dtype
) -> Problem:
    section = config.model
    classification = federation.task == "classification"
    if module is None:
        module = models.build(
            section.name,
            section.options,
            inputs=federation.inputs,
            classes=federation.classes if classification else 1,
            vocabulary=federation.vocabulary,
            key=keys.fold(key, "model"),
            dtype=dtype,
        )
    else:
        module = module.to(dtype)
        models.key_dropout(module)
    network, initial = Network.of(module, tuple(section.trainable))
    loss = section.loss or ("cross_entropy" if classification else "squares")
    problem = Problem(network, federation, LOSSES[loss], initial)
    _try_model(problem, section.name, loss)
    return problem


def _try_model(problem: Problem, name: str, loss: str) -> None:
    """One forward pass on a few samples, so that a model that does not fit the data is refused before anything runs."""
    shards = problem.data.splits["train"]
    x, y = shards.x[shards.index[:2]], shards.y[:2]
    params, buffers = problem.unpack(problem.initial)
    try:
        outputs = problem.network.infer(params, buffers, x)
        each = problem.per_sample(outputs, y)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            "model",
            f"'{name}' with loss '{loss}' does not fit the data: samples have shape {tuple(x.shape[1:])} and labels"
            f" {tuple(y.shape[1:])} {y.dtype}, {problem.data.classes} classes ({reason})",
        ) from error
    if each.shape != (x.shape[0],):
        raise ConfigError(
            "model.loss", f"'{loss}' gave shape {tuple(each.shape)} for {x.shape[0]} samples; one loss each is needed"
        )


def _adversary(config: Config, clients: int, key: Tensor) -> Adversary:
    """Who attacks: lists as given, then the others drawn at random from those who are left."""
    free = keys.permutation(keys.fold(key, "attackers"), clients)
    groups = []
    for i, section in enumerate(config.attack):
        where = f"attack.{i}"
        given = [n for n in ("share", "count", "clients") if getattr(section, n) is not None]
        if len(given) != 1:
            raise ConfigError(where, f"one of share, count or clients is needed; {', '.join(given) or 'none'} given")
        if section.clients is not None:
            ids = torch.tensor(section.clients, dtype=torch.int64)
            wrong = [c for c in section.clients if not 0 <= c < clients]
            if wrong or ids.unique().numel() != ids.numel():
                raise ConfigError(
                    f"{where}.clients", f"different ids from 0 to {clients - 1} are needed; {section.clients} given"
                )
        else:
            count = section.count if section.count is not None else int((section.share or 0.0) * clients + 1e-9)
            if not 0 < count <= free.numel():
                raise ConfigError(
                    f"{where}.{given[0]}", f"asks for {count} attackers of the {free.numel()} clients left"
                )
            ids = free[:count]
        taken = ~torch.isin(ids, free)
        if bool(taken.any()):
            raise ConfigError(f"{where}.clients", f"client {int(ids[taken][0])} is in another attack already")
        free = free[~torch.isin(free, ids)]
        groups.append(Group(attacks.build(section.name, section.options, where), ids.sort().values))
    return Adversary(tuple(groups))


def _strategy(config: Config) -> Strategy:
    """The strategy with its parts: a part is given to the strategies that have a parameter of its name."""
    section = config.strategy
    component = strategies.registry.get(section.name, "strategy.name")
    options = parameters(component)
    wants = set(options)
    parts: dict[str, Any] = strategies.registry.validate(section.name, section.options, "strategy")
    for part in ("participation", "aggregator", "optimizer"):
        if getattr(config, part) is not None and part not in wants:
            raise ConfigError(part, f"strategy '{section.name}' has no use for it; remove the section [{part}]")
    if section.server is not None and "server" not in wants:
        raise ConfigError("strategy.server", f"strategy '{section.name}' has no server step; remove the key")
    if "participation" in wants:
        selection = config.participation or configs.Component(name="uniform")
        parts["participation"] = participation.build(selection.name, selection.options)
    if "aggregator" in wants:
        rule = config.aggregator or configs.Component(name="mean")
        parts["aggregator"] = aggregators.build(rule.name, rule.options)
    if "optimizer" in wants:
        if config.optimizer is None:
            raise ConfigError(
                "optimizer", f"strategy '{section.name}' trains at the clients; add [optimizer] name and lr"
            )
        parts["optimizer"] = optimizers.build(config.optimizer.name, config.optimizer.options)
    if "server" in wants:
        server = section.server or configs.Component.model_validate({"name": "sgd", "lr": 1.0})
        parts["server"] = optimizers.build(server.name, server.options, "strategy.server")
    given = (section.batch_size, section.epochs, section.steps)
    if any(value is not None for value in given) and "batches" not in wants:
        raise ConfigError("strategy", f"'{section.name}' takes no batch_size, epochs or steps; remove them")
    if "batches" in wants:
        default: Batches = options["batches"].default
        size = default.size if section.batch_size is None else section.batch_size
        parts["batches"] = default._replace(
            size=size or None,  # 0 in a config, None in the walk: everything at once
            epochs=section.epochs or default.epochs,
            steps=section.steps or default.steps,
        )
    built: Strategy = component(**parts)
    return built


def _check(setup: Setup) -> None:
    """Every precondition that can be known before the first exchange."""
    config, problem = setup.config, setup.problem
    strategy: Any = setup.strategy
    selection = getattr(strategy, "participation", None)
    count = problem.clients
    if selection is not None:
        everybody = torch.arange(problem.clients)
        state = selection.init(problem)
        count = selection.head_count(state, everybody)
        selection.choose(state, count, everybody, setup.key)
    rule = getattr(strategy, "aggregator", None)
    if rule is not None:
        refusal = rule.admits(count)
        if refusal is not None:
            raise ConfigError("aggregator", refusal)
        if "trial" in rule.needs and "trial" not in problem.data.server:
            raise ConfigError(
                "data.trial_samples", f"rule '{rule.name}' needs a trial set at the server; set it to 500, say"
            )
        if "reference" in rule.needs:
            raise ConfigError(
                "aggregator",
                f"rule '{rule.name}' needs a reference update of the server's own, which"
                f" strategy '{config.strategy.name}' does not compute; take another rule",
            )
    if config.run.evaluate_clients_every and "valid" not in problem.data.splits:
        raise ConfigError(
            "data.valid_share",
            "clients evaluate on a split of their own; set a share > 0, or run.evaluate_clients_every = 0",
        )
    stop = config.run.stop
    if stop is not None:
        if stop.target is None and stop.patience is None:
            raise ConfigError("run.stop", "a target or a patience is needed")
        served = strategy.model(problem, strategy.init(problem, keys.fold(setup.key, "init"))) is not None
        known = problem.data.task == "classification" or stop.metric == "loss"
        if not (served and known and "test" in problem.data.server):
            raise ConfigError("run.stop.metric", f"'{stop.metric}' is not measured in this experiment")


def describe(setup: Setup) -> dict[str, Any]:
    """The facts of an experiment that is about to run, for people."""
    problem, rule = setup.problem, getattr(setup.strategy, "aggregator", None)
    sizes = problem.data.splits["train"].sizes
    return {
        "clients": problem.clients,
        "samples": {"train": int(sizes.sum()), **{n: int(s.y.shape[0]) for n, s in problem.data.server.items()}},
        "samples per client": {"least": int(sizes.min()), "median": int(sizes.median()), "most": int(sizes.max())},
        "classes": problem.data.classes,
        "parameters": problem.d,
        "attackers": setup.adversary.clients.tolist(),
        "rule scope": rule.scope if rule is not None else "none",
        "executor": setup.config.executor.name,
    }


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
    config, problem, strategy = setup.config, setup.problem, setup.strategy
    folder = Path(out or config.run.out or Path("runs") / config.run.name)
    config = config.model_copy(update={"run": config.run.model_copy(update={"out": str(folder)})})
    checkpoints = folder / "checkpoints"
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(setup.key, "init"))
    done = 0
    if resume:
        done, state = _restore(setup, config, folder, memory, state)
    else:
        _claim(folder)
    about = _about(setup, config, "running", "")
    write_json(folder / "run.json", about)
    write_text(folder / "config.toml", config.to_toml())  # after run.json: from here on, the folder is a run's
    write_json(folder / "partition.json", describe_partition(problem, setup.adversary))
    status, reason = "failed", ""
    last = done
    with Metrics(folder / "metrics.jsonl", before=done) as metrics, _patient_interrupt() as interrupted:
        before = metrics.lines[-1]["elapsed"] if metrics.lines else 0.0
        started = saved = time.monotonic()
        programs = strategy.programs(problem)

        def checkpoint() -> None:
            metrics.sync()
            facts_of_run = {"config": config.document(), "executor": setup.executor.plan()}
            facts_of_run["config"]["run"].pop("out", None)
            stored = Checkpoint(last, state, memory.snapshot(), facts_of_run)
            save_checkpoint(checkpoints, stored, config.run.keep_checkpoints)

        try:
            steps = exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, setup.key, done)
            reason = _ended(config, metrics.lines, state)
            while not reason:
                step = next(steps)
                state, last = step.state, step.number + 1
                line = exchange_line(step, setup.codec)
                at_end = state.round >= config.run.rounds
                began = time.perf_counter()
                if state.round % config.run.evaluate_every == 0 or at_end:
                    model = strategy.model(problem, state)
                    line |= evaluate.on_server(problem, model) if model is not None else {}
                every = config.run.evaluate_clients_every
                if every and (state.round % every == 0 or at_end):
                    everybody = torch.arange(problem.clients)
                    model = strategy.model(problem, state)
                    line["client_eval"] = evaluate.on_clients(
                        problem, programs, setup.executor, memory, model, everybody, setup.key
                    )
                line["seconds"]["evaluate"] = time.perf_counter() - began
                line["elapsed"] = before + time.monotonic() - started
                line = metrics.append(line)
                asked_to_stop = [bool(callback(line)) for callback in callbacks]
                due = config.run.checkpoint_every and last % config.run.checkpoint_every == 0
                if due or time.monotonic() - saved > config.run.checkpoint_seconds:
                    saved = time.monotonic()
                    try:
                        checkpoint()
                    except CheckpointError as error:
                        log.warning("%s; the run goes on", error)
                reason = _ended(config, metrics.lines, state)
                status = "finished" if reason == _ALL_ROUNDS else "stopped"
                if not reason and any(asked_to_stop):
                    status, reason = "stopped", "a callback asked to stop"
                if not reason and interrupted.is_set():
                    status, reason = "interrupted", "by the user; continue with 'fedopt resume'"
            if status == "failed":
                status = "finished" if reason == _ALL_ROUNDS else "stopped"
            checkpoint()
            model = strategy.model(problem, state)
            final = named_model(problem, model) if model is not None else None
            if final is not None:
                write_bytes(folder / "model.safetensors", save(final))
        except BaseException as error:
            status, reason = "failed", f"exchange {last}: {type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                status, reason = "interrupted", "by the user, within an exchange; continue with 'fedopt resume'"
            if isinstance(error, ClientError):
                error.add_note(f"look at it with: fedopt replay {folder} --exchange {last} --client {error.client}")
            # a line that is missing, or memory that may be half committed, would make a checkpoint that skips something
            whole = len(metrics.lines) == last and (isinstance(error, Exception) or not memory.first)
            if last > done and whole:
                with contextlib.suppress(Exception):
                    checkpoint()
            with contextlib.suppress(RecordError):
                write_json(folder / "run.json", _about(setup, config, status, reason, started=about["started"]))
            raise
        write_json(folder / "run.json", _about(setup, config, status, reason, started=about["started"]))
    return Result(metrics.lines, final, folder, status, reason, state, setup)


def resume_run(folder: str | Path, changes: Sequence[str] = (), *, callbacks: Sequence[Callback] = ()) -> Result:
    """Continue the run in a folder, from its newest checkpoint; `changes` may extend it but not alter its numbers."""
    folder = Path(folder)
    config = stored_config(folder, changes)
    return execute(build(config), folder, callbacks=callbacks, resume=True)


def stored_config(folder: Path, changes: Sequence[str] = ()) -> Config:
    """The config of a run folder. Raises ConfigError for a run that held objects which no config can describe."""
    _known_run(folder)
    if not json.loads((folder / "run.json").read_text(encoding="utf-8"))["portable"]:
        raise ConfigError(
            "run.out",
            f"{folder} was run from Python with a module, data or a strategy of its own, which its config does not"
            " hold; go on with Experiment(...).resume(folder)",
        )
    return configs.load(folder / "config.toml", changes)


def replay(
    folder: str | Path, exchange: int, client: int, *, before: Callable[[Setup, Exchange], object] | None = None
) -> Uplink:
    """Repeat one client's work of one exchange, alone and eagerly, and return its answer.

    The federation is run again from the newest checkpoint that is old enough. `before` is called right before the
    client's work starts (a debugger, say).
    """
    folder = Path(folder)
    setup = build(stored_config(folder))
    problem, strategy = setup.problem, setup.strategy
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(setup.key, "init"))
    lines = len(read_lines(folder / "metrics.jsonl"))
    if not 0 <= exchange < lines + 1:
        raise ConfigError("--exchange", f"0 to {lines} can be replayed, {lines} being the next; {exchange} was given")
    first = 0
    found = newest(folder / "checkpoints", at_most=exchange)
    if found is not None:
        stored = load_checkpoint(found)
        first, state = stored.exchanges, stored.state
        memory.restore(stored.memory)
        setup.executor.restore(stored.run["executor"])
    steps = exchanges(problem, strategy, setup.executor, setup.adversary, memory, state, setup.key, first)
    for _ in range(first, exchange):
        state = next(steps).state
    here = keys.fold(setup.key, "exchange", exchange)
    planned = strategy.plan(problem, state, keys.fold(here, "plan"))
    row = torch.nonzero(planned.clients == client).flatten()
    if row.numel() == 0:
        raise ConfigError(
            "--client", f"client {client} took no part in exchange {exchange}: {planned.clients.tolist()} did"
        )
    if before is not None:
        before(setup, planned)
    cohort = assemble(problem, planned, memory.of(planned.clients), here)
    return run_client(problem, strategy.programs(problem), planned, cohort.take(row))


_ALL_ROUNDS = "all rounds done"


def _ended(config: Config, lines: list[dict[str, Any]], state: State) -> str:
    """Why the run is over, or the empty string: a function of the record, so that a resumed run decides alike."""
    if state.round >= config.run.rounds:
        return _ALL_ROUNDS
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


def _is_run(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("run.json", "config.toml"))


def _known_run(folder: Path) -> None:
    if not _is_run(folder):
        raise ConfigError("run.out", f"{folder} is no run folder: it has no run.json and config.toml")


def _claim(folder: Path) -> None:
    """Make the folder of a new run; an empty one may be there."""
    other = "give another with --set run.out=DIR"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # a run that was killed at its very start leaves drafts, and a run.json alone
        taken = any(not path.name.startswith(".") and path.name != "run.json" for path in folder.iterdir())
    except OSError as error:
        raise ConfigError("run.out", f"the folder {folder} cannot be made ({error}); {other}") from error
    if _is_run(folder):
        raise ConfigError(
            "run.out", f"the folder {folder} holds a run already; continue it with 'fedopt resume {folder}', or {other}"
        )
    if taken:
        raise ConfigError("run.out", f"the folder {folder} is not empty; {other}")


def _restore(setup: Setup, config: Config, folder: Path, memory: ClientMemory, state: State) -> tuple[int, State]:
    """How many exchanges are done, and the state after them; fills `memory` and the executor's plan."""
    _known_run(folder)
    found = newest(folder / "checkpoints")
    stored = load_checkpoint(found) if found is not None else None
    before = configs.load(folder / "config.toml" if stored is None else stored.run["config"])
    changed = configs.differences(before, config)
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
        return 0, state
    model = setup.strategy.model(setup.problem, stored.state)
    if model is not None and model["params"].numel() != setup.problem.d:
        raise ConfigError(
            "model",
            f"the checkpoint holds a model of {model['params'].numel()} parameters and this one has {setup.problem.d};"
            " resume with the model that the run was started with",
        )
    memory.restore(stored.memory)
    setup.executor.restore(stored.run["executor"])
    return stored.exchanges, stored.state


def _about(setup: Setup, config: Config, status: str, reason: str, started: str | None = None) -> dict[str, Any]:
    plan = setup.executor.plan()
    refused = "; ".join(f"{program}: {why}" for program, why in plan.get("refused", {}).items())
    return {
        "name": config.run.name,
        "status": status,
        "reason": reason,
        "fedopt": version("fedopt"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "started": started or datetime.now(UTC).isoformat(timespec="seconds"),
        "executor": {"name": setup.executor.name, "reason": refused or "as configured", **plan},
        "parameters": setup.problem.d,
        "rounds": config.run.rounds,
        "strategy": config.strategy.name,
        "portable": setup.portable,
    }


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

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
