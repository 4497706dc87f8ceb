"""From a config to an experiment that is ready to run: data, model, strategy, attackers, and every check.

Whatever can be known to be wrong before the first exchange is a ConfigError here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedopt import aggregators, attacks, compression, data, keys, models, optimizers, participation, privacy, strategies
from fedopt import config as configs
from fedopt.aggregators import pre
from fedopt.compressed import Compressed, bare
from fedopt.compression import feedback
from fedopt.config import Config
from fedopt.data import Dataset, Federation, federate, federate_vertically, pool
from fedopt.engine.adversary import Adversary, Group, Schedule
from fedopt.engine.allocator import keep_freed
from fedopt.engine.auto import Auto, Candidate
from fedopt.engine.availability import Availability, Pace
from fedopt.engine.loop import Executor
from fedopt.engine.memory import ClientMemory
from fedopt.engine.placement import cores
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.problem import LIKELIHOODS, LOSSES, Network, Problem, layout
from fedopt.registry import ConfigError, facts, parameters
from fedopt.surveyed import MEASURES, SURVEYS, Surveyed
from fedopt.types import Attack, Batches, Codec, Strategy
from fedopt.vfl import losses
from fedopt.vfl.blocks import is_linear

INNER: tuple[Literal["stacked"], Literal["serial"]] = ("stacked", "serial")
"""What a worker may run its clients with."""

TRIAL_SATURATION = 0.25
"""Default of data.trial_saturation for likelihoods: docs/robustness.md has what led to it."""

log = logging.getLogger(__name__)


class Setup(NamedTuple):
    """An experiment that is ready to run."""

    config: Config
    problem: Problem
    strategy: Strategy
    executor: Executor
    adversary: Adversary
    codec: Codec
    key: Tensor
    evaluated: Problem
    """The problem as the server evaluates on it: the server's splits, on the executor's device."""
    portable: bool
    """False if it holds objects that only Python code can give back (own module, own data, own strategy)."""
    availability: Availability | None = None
    privacy: dict[str, Any] | None = None
    """What [privacy] guarantees and how it was counted, for people."""
    checkpointed: Callable[[ClientMemory], None] | None = None
    """Told when a checkpoint with this memory is on disk."""


def build(
    config: Config,
    *,
    model: nn.Module | None = None,
    data: Dataset | Federation | None = None,
    strategy: Strategy | None = None,
) -> Setup:
    """Everything that a config describes, checked; objects take the place of their sections."""
    key = keys.root(config.run.seed)
    dtype = getattr(torch, config.run.dtype)
    built = strategy or _strategy(config)
    vertical = bool(facts(type(built)).get("vertical"))
    if config.data.vertical is not None and not vertical:
        raise ConfigError("data.vertical", f"strategy '{config.strategy.name}' has clients with samples, not columns")
    cut = _vertical if vertical else _federation
    federation = data if isinstance(data, Federation) else cut(config, data, key)
    portable = model is None and data is None and strategy is None
    for section, value in (("model", model), ("data", data), ("strategy", strategy)):
        if value is not None:  # the record says what was run, not what the section would have been
            own = getattr(config, section).model_copy(
                update={"name": f"{type(value).__module__}:{type(value).__name__}"}
            )
            config = config.model_copy(update={section: own})
    strategy = built
    if facts(type(strategy)).get("pooled"):
        federation = pool(federation)
    federation = _cast(federation, dtype)
    adversary = _adversary(config, federation.clients, key)
    federation = adversary.poison(federation, keys.fold(key, "poison"))
    problem = (_vertical_problem if vertical else _problem)(config, federation, model, key, dtype, strategy)
    adversary = adversary._replace(fresh=_fresh(config, problem))
    guarantee = None
    if config.privacy is not None:
        config, strategy, guarantee = _private(config, config.privacy, strategy, problem, adversary)
    executor = _executor(config)
    evaluated = problem
    if config.executor.device != "cpu":
        evaluated = problem._replace(data=federation._replace(splits={})).to(config.executor.device)
    strategy, codec = _compressed(config, strategy, problem)
    setup = Setup(
        config,
        problem,
        strategy,
        executor,
        adversary,
        codec,
        key,
        evaluated,
        portable,
        _availability(config, key),
        guarantee,
    )
    _check(setup)
    return setup


def _federation(config: Config, dataset: Dataset | None, key: Tensor) -> Federation:
    section = config.data
    if dataset is None:
        dataset = data.registry.build(section.name, section.options, "data")
    if isinstance(dataset, Federation):
        return dataset
    trial = section.trial
    return federate(
        dataset,
        clients=section.clients,
        partition=section.partition.name,
        partition_options=section.partition.options,
        test_share=section.test_share,
        valid_share=section.valid_share,
        trial_samples=section.trial_samples,
        trial=None if trial is None else data.registry.build(trial.name, trial.options, "data.trial"),
        key=keys.fold(key, "data"),
    )


def _cast(federation: Federation, dtype: torch.dtype) -> Federation:
    """Floating features and labels in the run's dtype."""

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    splits = {n: s._replace(x=cast(s.x), y=cast(s.y)) for n, s in federation.splits.items()}
    server = {n: s._replace(x=cast(s.x), y=cast(s.y)) for n, s in federation.server.items()}
    return federation._replace(splits=splits, server=server)


def _vertical(config: Config, dataset: Dataset | None, key: Tensor) -> Federation:
    """Columns at parties, labels at the server."""
    section = config.data
    cut = section.vertical or configs.Vertical()
    if section.clients is None:
        raise ConfigError("data.clients", "the number of parties is needed")
    unused = [name for name in ("valid_share", "trial_samples") if getattr(section, name)]
    if unused or section.trial is not None:
        raise ConfigError(f"data.{(*unused, 'trial')[0]}", "parties without labels have no such samples; remove it")
    if dataset is None:
        dataset = data.registry.build(section.name, section.options, "data")
    return federate_vertically(
        dataset,
        parties=section.clients,
        partition=cut.name,
        partition_options=cut.options,
        test_share=section.test_share,
        normalise=cut.normalise,
        missing=cut.missing,
        alignment=cut.alignment,
        key=keys.fold(key, "data"),
    )


def _vertical_problem(
    config: Config, federation: Federation, module: nn.Module | None, key: Tensor, dtype: torch.dtype, strategy: Any
) -> Problem:
    """The problem of parties: their bottom network, and the label owner's loss by which their sum is scored."""
    section = config.model
    if section.loss is not None:
        raise ConfigError("model.loss", "the label owner has the loss; set strategy.loss")
    outputs = losses.outputs(strategy.loss, federation.classes, federation.task)
    if module is None:
        module = models.build(
            section.name,
            section.options,
            inputs=federation.inputs,
            classes=getattr(strategy, "width", None) or outputs,
            vocabulary=federation.vocabulary,
            key=keys.fold(key, "model"),
            dtype=dtype,
        )
    network, initial = Network.of(module.to(dtype), tuple(section.trainable))
    if is_linear(network.training) and not getattr(strategy, "width", None):  # where the theory starts
        initial = {"params": torch.zeros_like(initial["params"])}
    score = losses.LOSSES[strategy.loss]

    def per_sample(z: Tensor, y: Tensor) -> Tensor:
        if not y.numel():  # a party's own outputs, for which there are no labels; their size is what is asked for
            return z.square().sum(dim=1)
        return score.each(z, losses.targets(strategy.loss, y, federation.classes, federation.task, z.dtype))

    return Problem(network, federation, per_sample, initial)


def _problem(
    config: Config,
    federation: Federation,
    module: nn.Module | None,
    key: Tensor,
    dtype: torch.dtype,
    strategy: Strategy,
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
    saturation = config.data.trial_saturation
    if saturation is None:
        saturation = TRIAL_SATURATION if loss in LIKELIHOODS else 0.0
    problem = Problem(network, federation, LOSSES[loss], initial, trial_saturation=saturation)
    _try_model(problem, section.name, loss)
    return problem._replace(layout=layout(problem))


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
    groups: list[Group] = []
    for i, section in enumerate(config.attack):
        where = f"attack.{i}"
        attack = attacks.build(section.name, section.options, where)
        given = [n for n in ("share", "count", "clients", "along") if getattr(section, n) is not None]
        if len(given) != 1:
            raise ConfigError(
                where, f"one of share, count, clients or along is needed; {', '.join(given) or 'none'} given"
            )
        if section.along is not None:
            ids = _companions(groups, section.along, attack, where)
        elif section.clients is not None:
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
        if section.along is None and bool(taken.any()):
            raise ConfigError(f"{where}.clients", f"client {int(ids[taken][0])} is in another attack already")
        free = free[~torch.isin(free, ids)]
        groups.append(Group(attack, ids.sort().values, _schedule(section, where)))
    return Adversary(tuple(groups))


def _availability(config: Config, key: Tensor) -> Availability | None:
    asked = config.availability
    if asked is None:
        return None
    pace = None if asked.pace is None else Pace(**asked.pace.model_dump())
    stay = math.inf if asked.stay is None else asked.stay
    word = keys.fold(key, "availability")
    return Availability(word, asked.share, asked.session, asked.join, stay, asked.dropout, pace)


def _companions(groups: list[Group], along: int, attack: Attack, where: str) -> Tensor:
    """The clients of an earlier attack of the other kind."""
    if along >= len(groups):
        raise ConfigError(f"{where}.along", f"the number of an attack before this one is needed; {along} given")
    other = groups[along]
    if other.on_data == (attack.vectors is None):
        raise ConfigError(
            f"{where}.along",
            f"{other.attack.name} and {attack.name} are both on {'data' if other.on_data else 'vectors'}; the same"
            " clients can carry out one attack on data and one on vectors",
        )
    return other.clients


def _schedule(section: configs.Attack, where: str) -> Schedule:
    first, last = section.first_round, section.last_round
    if last is not None and last < first:
        raise ConfigError(f"{where}.last_round", f"{last} lies before first_round = {first}")
    return Schedule(first, last, section.rounds_share, section.clients_share)


def _fresh(config: Config, problem: Problem) -> Callable[[Tensor], Tensor] | None:
    """First parameters of the configured network by another key; None for a module of the user's own."""
    data, section = problem.data, config.model
    if ":" in section.name:
        return None

    def fresh(key: Tensor) -> Tensor:
        module = models.build(
            section.name,
            section.options,
            inputs=data.inputs,
            classes=data.classes if data.task == "classification" else 1,
            vocabulary=data.vocabulary,
            key=key,
            dtype=problem.dtype,
        )
        return Network.of(module, tuple(section.trainable))[1]["params"]

    return fresh


def _executor(config: Config) -> Executor:
    """The executor of the config; Ray is looked for only where it may be used, and started only by an exchange."""
    asked = config.executor
    keep_freed()
    device = asked.device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError("executor.device", f"cpu, cuda or cuda:N is needed; '{device}' was given") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("executor.device", f"'{device}' was given and torch finds no GPU here; set cpu")
    if kind not in ("cpu", "cuda"):
        raise ConfigError("executor.device", f"cpu, cuda or cuda:N is needed; '{device}' was given")
    if asked.name == "serial" and (device != "cpu" or asked.precision != "full"):
        raise ConfigError(
            "executor.name",
            "serial computes on the CPU in full precision; take stacked, or remove device and precision",
        )
    if asked.name == "serial":
        return Serial()
    if asked.name == "stacked":
        return Stacked(asked.memory_mb, device, asked.precision, asked.threads)
    ray = _ray(config)
    if asked.name == "ray":
        if ray is None:
            raise ConfigError("executor.name", "'ray' needs the package ray: pip install 'fedopt[ray]'")
        return ray(asked.inner, asked.workers)
    inside: dict[str, Candidate] = {"stacked": Stacked(asked.memory_mb, device, asked.precision)}
    threads = asked.workers or cores()
    if device == "cpu" and threads > 1:
        inside[f"stacked x {threads}"] = Stacked(asked.memory_mb, device, asked.precision, threads)
    if device == "cpu" and asked.precision == "full":
        inside["serial"] = Serial()
    pools: dict[str, tuple[int, Callable[[], Candidate]]] = {}
    if ray is not None and (device == "cpu" or asked.gpus_per_worker > 0):
        most = asked.workers or cores()
        for workers in sorted({most, max(2, most // 2)} if most > 1 else (), reverse=True):
            for inner in (kind for kind in INNER if kind in inside):
                pools[f"ray {workers} x {inner}"] = workers, partial(ray, inner, workers)
    return Auto(inside, pools, config.run.rounds)


def _ray(config: Config) -> Callable[[Literal["serial", "stacked"], int | None], Candidate] | None:
    """Maker of ray executors; None where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        return None
    from fedopt.engine.ray import Ray

    asked = config.executor
    return lambda inner, workers: Ray(
        inner,
        workers,
        asked.memory_mb,
        asked.threads,
        asked.address,
        asked.device,
        asked.precision,
        asked.gpus_per_worker,
        asked.worker_memory_mb,
    )


def _strategy(config: Config) -> Strategy:
    """The strategy with its parts: a part is given to the strategies that have a parameter of its name."""
    section = config.strategy
    component = strategies.registry.get(section.name, "strategy.name")
    options = parameters(component)
    wants = set(options)
    parts: dict[str, Any] = strategies.registry.validate(section.name, section.options, "strategy")
    for part in ("participation", "aggregator", "optimizer"):
        if getattr(config, part) is not None and part not in wants:
            raise ConfigError(
                part, f"strategy '{section.name}' has no use for it; remove the section [{part}] (--set {part}=)"
            )
    if section.server is not None and "server" not in wants:
        raise ConfigError("strategy.server", f"strategy '{section.name}' has no server step; remove the key")
    if "participation" in wants:
        selection = config.participation or configs.Participation(name="uniform")
        count: Any = selection.count
        if isinstance(count, configs.Component):
            count = {"name": count.name, **count.options}
        parts["participation"] = participation.selection(
            selection.name, count=count, fraction=selection.fraction, **selection.options
        )
    if "aggregator" in wants:
        rule = config.aggregator or configs.Aggregator(name="mean")
        parts["aggregator"] = pre.composed(
            aggregators.build(rule.name, rule.options),
            [pre.build(step.name, step.options, f"aggregator.pre.{i}") for i, step in enumerate(rule.pre)],
        )
    if "optimizer" in wants:
        if config.optimizer is None:
            raise ConfigError(
                "optimizer", f"strategy '{section.name}' trains at the clients; add [optimizer] name and lr"
            )
        parts["optimizer"] = optimizers.build(config.optimizer.name, config.optimizer.options)
    if "server" in wants:
        server = section.server or configs.Component.model_validate({"name": "sgd", "lr": 1.0})
        step = optimizers.build(server.name, server.options, "strategy.server")
        hears = frozenset() if config.privacy else frozenset({"value"})  # the mean of the clients' losses
        parts["server"] = optimizers.at_server(step, "strategy.server", hears)
    if "codec" in wants:
        parts["codec"] = _codec(config)
    if "broadcast" in wants:
        parts["broadcast"] = _broadcast(config)
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


def _compressed(config: Config, strategy: Strategy, problem: Problem) -> tuple[Strategy, Codec]:
    """The strategy with compressed vectors, where anything is compressed, and the codec of what clients send."""
    strategy = _surveyed(strategy)
    asked = config.compression
    shapes = problem.network.spec.shapes
    codec, down = _codec(config, shapes), _broadcast(config, shapes)
    if "broadcast" in parameters(type(strategy)):  # it does that itself
        down = None
    vectors = tuple(asked.vectors or facts(type(strategy)).get("vectors", ("delta",)))
    memory = feedback.build(asked.feedback.name, asked.feedback.options)
    if asked.name == asked.feedback.name == "none" and down is None:
        return strategy, codec
    if codec.kind not in memory.needs:
        kind = "a contraction" if codec.kind == "contraction" else codec.kind
        log.warning(
            "feedback '%s' has no guarantee of convergence with the codec '%s', %s; it has one with codecs that are %s",
            memory.name, codec.name, kind, " or ".join(sorted(memory.needs)),
        )  # fmt: skip
    return Compressed(strategy, codec, memory, vectors, down), codec


def _codec(config: Config, shapes: compression.Shapes | None = None) -> Codec:
    """Of what clients send."""
    asked, options = config.compression, dict(config.compression.options)
    if asked.name == "none":  # as it stands
        options.setdefault("dtype", config.run.dtype)
    return compression.build(asked.name, options, "compression", shapes)


def _broadcast(config: Config, shapes: compression.Shapes | None = None) -> Codec | None:
    """Of what they are sent."""
    asked = config.compression.down
    if asked is None:
        return None
    down = compression.build(asked.name, asked.options, "compression.down", shapes)
    if down.asks:
        raise ConfigError(
            "compression.down.name", f"'{down.name}' is for clients; it needs {', '.join(sorted(down.asks))}"
        )
    return down


def _surveyed(strategy: Strategy) -> Strategy:
    """The strategy with the numbers that its selector wants of the clients, where it wants any."""
    wanted = getattr(strategy, "participation", None)
    if wanted is None or not wanted.measures | wanted.surveys:
        return strategy
    unknown = sorted((wanted.measures - MEASURES) | (wanted.surveys - SURVEYS))
    if unknown:
        known = ", ".join(sorted(MEASURES | SURVEYS))
        raise ConfigError("participation.name", f"'{wanted.name}' asks for {', '.join(unknown)}; there are {known}")
    return Surveyed(strategy, wanted, getattr(strategy, "batches", Batches()))


def _private(
    config: Config, asked: configs.Privacy, strategy: Strategy, problem: Problem, adversary: Adversary
) -> tuple[Config, Strategy, dict[str, Any]]:
    """The strategy on a private rule, the config with the noise that was solved for, and what is guaranteed."""
    sample, cohort, counted = _counted(config, strategy, problem)
    rounds, delta = config.run.rounds, asked.delta or problem.clients**-1.1
    if not delta < 1:
        raise ConfigError("privacy.delta", "with one client there is no default; give a number below 1")
    z, target = asked.noise_multiplier, asked.target_epsilon
    if z is None and target is None:
        raise ConfigError("privacy.noise_multiplier", "give it, or target_epsilon, for which it is solved")
    if z is None:
        z = privacy.calibrated(target or 0.0, rounds, delta, sample)
    spent = partial(privacy.epsilon, z, delta=delta, sample=sample)
    adaptive, moving = None, asked.adaptive
    if moving is not None:
        adaptive = privacy.Adaptive(moving.quantile, moving.lr, moving.count_noise or max(cohort / 20, z))
    rule = privacy.private(
        getattr(strategy, "aggregator"),  # noqa: B009 - no strategy has to have one
        noise_multiplier=z,
        clip=asked.clip,
        spent=spent,
        adaptive=adaptive,
        where="aggregator.pre" if config.aggregator is not None and config.aggregator.pre else "aggregator.name",
    )
    whole = spent(rounds)
    if target is not None and whole > target * (1 + 1e-9):
        within = bisect_right(range(rounds + 1), target, key=spent) - 1
        raise ConfigError(
            "privacy.target_epsilon",
            f"{rounds} rounds with noise_multiplier = {z:.6g} spend {whole:.4g}, and {within} rounds no more than"
            f" {target:.4g}; lower run.rounds, raise privacy.noise_multiplier, or leave it out of a new run to have it"
            " solved for",
        )
    strategy = dataclasses.replace(strategy, aggregator=rule)  # type: ignore[type-var]
    config = config.model_copy(update={"privacy": asked.model_copy(update={"noise_multiplier": z})})
    seen = [g.attack.name for g in adversary.groups if g.attack.knowledge in ("colluders", "omniscient")]
    uncovered = ["what metrics.jsonl and partition.json say of clients: losses, evaluations, counts, the clipped share"]
    uncovered += [f"rows that the attack {name} makes of other clients' rows" for name in seen]
    guarantee = {
        "epsilon": whole,
        "delta": delta,
        "rounds": rounds,
        "noise multiplier": z,
        "neighbours": "one client replaced by any other",
        "counted": f"{counted}; Rényi divergences of dp-accounting {version('dp-accounting')}",
        "not covered": uncovered,
    }
    return config, strategy, guarantee


def _counted(config: Config, strategy: Strategy, problem: Problem) -> tuple[privacy.Sample | None, int, str]:
    """How cohorts are drawn as far as it amplifies privacy, how large they are, and the same in words."""
    parts: set[str] = set()
    if dataclasses.is_dataclass(strategy):
        parts = {field.name for field in dataclasses.fields(strategy)}
    if not (facts(type(strategy)).get("private") and {"participation", "aggregator"} <= parts):
        known = [n for n in strategies.registry.builtin() if facts(strategies.registry.get(n)).get("private")]
        raise ConfigError(
            "privacy",
            f"strategy '{config.strategy.name}' does not say that the server learns from clients by its rule alone, and"
            f" noise on the rule's result covers nothing else; take {', '.join(known)}, or remove [privacy]",
        )
    if "buffers" in problem.initial:
        raise ConfigError(
            "model",
            f"'{config.model.name}' has buffers (statistics of batch normalisation), which are sent and averaged beside"
            ' the vector, without clipping and noise; take a model without them (norm = "group"), or remove [privacy]',
        )
    selection: Any = getattr(strategy, "participation")  # noqa: B009 - as above
    clients = problem.clients
    cohort = selection.ask(selection.init(problem), clients).number
    drawn = selection.sampling
    if drawn is None:
        raise ConfigError(
            "participation.name",
            f"{selection.name} does not say that whom it chooses is independent of the clients' data; what it"
            " tells of them has no noise; take uniform, or remove [privacy]",
        )
    if cohort == clients:
        return None, cohort, f"all {clients} clients in every round"
    each = "every client in every round, without amplification by sampling"
    if drawn != "uniform":
        return None, cohort, f"{each}, since {selection.name} does not draw uniformly"
    if config.availability is not None:
        return None, cohort, f"{each}, since not everybody can be chosen in every round"
    if strategy.programs(problem).memory:
        return None, cohort, f"{each}, since clients remember when they took part"
    return (clients, cohort), cohort, f"{cohort} of {clients} clients, uniformly without replacement, in every round"


def _check(setup: Setup) -> None:
    """Every precondition that can be known before the first exchange."""
    config, problem = setup.config, setup.problem
    strategy: Any = bare(setup.strategy)
    selection = getattr(strategy, "participation", None)
    count = problem.clients
    if selection is not None:
        everybody = torch.arange(problem.clients)
        state = selection.init(problem)
        count = selection.ask(state, problem.clients).number
        selection.choose(state, count, everybody, setup.key)
    rule = getattr(strategy, "aggregator", None)
    if rule is not None:
        refusal = rule.admits(count)
        if refusal is not None:
            raise ConfigError("aggregator", refusal)
        for offer, what in (("trial", "a trial set"), ("reference", "labelled samples of its own to train on")):
            if offer in rule.needs and "trial" not in problem.data.server:
                raise ConfigError(
                    "data.trial_samples", f"rule '{rule.name}' needs {what} at the server; set it to 500, say"
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
    problem, rule = setup.problem, getattr(bare(setup.strategy), "aggregator", None)
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
        **({} if setup.privacy is None else {"privacy": setup.privacy}),
    }
