"""The experiment as a document: TOML in, a checked value out.

    [run] [data] [model] [strategy] [participation] [availability] [aggregator] [[attack]] [compression] [optimizer]
    [executor] [deploy]

A section that names a component holds the component's options beside the name. Everything is checked as a whole before
anything runs: unknown sections, options and names with the nearest known one, missing options, wrong types.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import tomli_w

from fedopt import aggregators, attacks, compression, data, models, optimizers, participation, strategies
from fedopt.aggregators import pre
from fedopt.compression import feedback
from fedopt.data import partitions, vertical
from fedopt.participation import counts
from fedopt.problem import LOSSES
from fedopt.registry import ConfigError, Registry, nearest

CLOSED = pydantic.ConfigDict(extra="forbid")
OPEN = pydantic.ConfigDict(extra="allow")


class Stop(pydantic.BaseModel):
    """Early stopping on a figure of the record."""

    model_config = CLOSED
    metric: Literal["accuracy", "loss", "g_mean", "macro_f1"] = "accuracy"
    target: float | None = None
    """Stop when the metric reaches this value."""
    patience: int | None = pydantic.Field(None, ge=1)
    """Stop after so many evaluations without an improvement."""
    min_delta: float = 0.0
    """What counts as an improvement."""


class Run(pydantic.BaseModel):
    """What is run and what is kept of it."""

    model_config = CLOSED
    name: str = "experiment"
    seed: int = pydantic.Field(1, ge=0)
    rounds: int = pydantic.Field(100, ge=1)
    out: str | None = None
    """The run folder; `runs/<name>` by default."""
    dtype: Literal["float32", "float64"] = "float32"
    evaluate_every: int = pydantic.Field(1, ge=1)
    """Rounds between evaluations on the server; the last round is always evaluated."""
    evaluate_last: int | None = pydantic.Field(None, ge=1)
    """So many last rounds are all evaluated on the server, for a mean over them; the last one alone without it."""
    evaluate_clients_every: int = pydantic.Field(0, ge=0)
    """Rounds between evaluations on clients (0: never); needs data.valid_share > 0."""
    checkpoint_every: int = pydantic.Field(0, ge=0)
    """Exchanges between checkpoints (0: by time alone)."""
    checkpoint_seconds: float = pydantic.Field(60.0, gt=0)
    keep_checkpoints: int = pydantic.Field(2, ge=1)
    stop: Stop | None = None
    track: list[Literal["tensorboard", "mlflow"]] = []


class Component(pydantic.BaseModel):
    """A section that names a component; all other keys are the component's options."""

    model_config = OPEN
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Vertical(Component):
    """How columns are cut over parties, for strategies in which parties hold columns of the same people."""

    name: str = "even"
    normalise: Literal["none", "variance", "standard"] = "variance"
    """Of each column, by its party: divided by its deviation, centred as well, or as it is."""
    missing: float = pydantic.Field(0.0, ge=0, lt=1)
    """Share of the people that each party lacks; those whom everybody has are found by their ids."""
    alignment: Literal["given", "hashed", "psi"] = "given"
    """How they are found: not at all (needs missing = 0), by hashes of ids, which hide nothing, or by a private set
    intersection (`pip install 'fedopt[vfl]'`)."""


class Data(Component):
    """Where the samples come from and how they are spread."""

    name: str = "digits"
    clients: int | None = pydantic.Field(None, ge=1)
    partition: Component = Component(name="iid")
    test_share: float = pydantic.Field(0.2, ge=0, lt=1)
    valid_share: float = pydantic.Field(0.0, ge=0, lt=1)
    trial_samples: int = pydantic.Field(0, ge=0)
    trial: Component | None = None
    """A source that the server's trial samples are drawn from, in place of the training part."""
    vertical: Vertical | None = None
    trial_saturation: float | None = pydantic.Field(None, ge=0)
    """q of the trial function, the mean of (1 - exp(-q loss)) / q over the trial samples; 0 is the loss itself. By
    default 0.25 where the loss is -log of a probability, and 0 for squares."""


class Model(Component):
    """The network, its loss, and which of its parameters are learnt."""

    name: str = "mlp"
    loss: str | None = None
    """`cross_entropy` for classification and `squares` for regression by default."""
    trainable: list[str] = ["*"]


class Participation(Component):
    """Who takes part, and how many: a number, a share of the pool, or a head-count by its name with its options."""

    name: str = "uniform"
    count: int | Component | None = None
    fraction: float | None = None


class Strategy(Component):
    """The federated method, how clients walk over their data, and the server optimizer."""

    name: str = "fedavg"
    batch_size: int | None = pydantic.Field(None, ge=0)
    """Samples per local batch; 0 is the client's whole split at once."""
    epochs: int | None = pydantic.Field(None, ge=1)
    steps: int | None = pydantic.Field(None, ge=1)
    """Local batches per exchange, in place of epochs."""
    server: Component | None = None
    """An optimizer; sgd with lr 1 adds the aggregate to the model."""


class Attack(Component):
    """An attack and who carries it out: a share of all clients, a number of them, or a list."""

    share: float | None = pydantic.Field(None, gt=0, le=1)
    count: int | None = pydantic.Field(None, ge=1)
    clients: list[int] | None = None
    along: int | None = pydantic.Field(None, ge=0)
    """The number of an earlier attack whose clients carry out this one too: one on data, the other on vectors."""
    first_round: int = pydantic.Field(0, ge=0)
    """The attackers are honest before this round; the first round of a run is 0."""
    last_round: int | None = pydantic.Field(None, ge=0)
    rounds_share: float = pydantic.Field(1.0, gt=0, le=1)
    """Each round is attacked with this probability."""
    clients_share: float = pydantic.Field(1.0, gt=0, le=1)
    """In a round that is attacked, each attacker takes part with this probability."""


class Aggregator(Component):
    """The aggregation rule, and what is done to the updates before it, in this order."""

    pre: list[Component] = []


class Compression(Component):
    """How vectors are sent, those of the clients to the server first of all."""

    name: str = "none"
    feedback: Component = Component(name="none")
    """What clients keep of what a codec lost."""
    vectors: list[str] | None = None
    """Of those that clients send; the others are sent as they stand. By default `delta`, or what the strategy names."""
    down: Component | None = None
    """A codec for the model on its way to the clients: the change from what they were sent before."""


class Adaptive(pydantic.BaseModel):
    """The clipping norm follows a quantile of the clients' norms."""

    model_config = CLOSED
    quantile: float = pydantic.Field(0.5, ge=0, le=1)
    """The share of clients that is not to be clipped."""
    lr: float = pydantic.Field(0.2, gt=0)
    """Step of the logarithm of the norm."""
    count_noise: float | None = pydantic.Field(None, gt=0)
    """Standard deviation of the noise on the number of clients that were not clipped; by default a twentieth of the
    cohort, and at least the noise multiplier."""


class Privacy(pydantic.BaseModel):
    """Client-level differential privacy of the aggregate."""

    model_config = CLOSED
    clip: float = pydantic.Field(gt=0, allow_inf_nan=False)
    """C, how long a client's update may be; longer ones are cut to it. With `adaptive`, its first value."""
    noise_multiplier: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    """z: the noise on the sum of updates has the standard deviation z C; solved for where target_epsilon is given."""
    target_epsilon: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    """What all rounds of the run together may spend."""
    delta: float | None = pydantic.Field(None, gt=0, lt=1)
    """Of (epsilon, delta); N^-1.1 for N clients by default."""
    adaptive: Adaptive | None = None


class Pace(pydantic.BaseModel):
    """How long clients take, in simulated seconds: (latency + step · local steps · speed) · noise."""

    model_config = CLOSED
    step: float = pydantic.Field(gt=0, allow_inf_nan=False)
    """Seconds of a local step of the median client."""
    latency: float = pydantic.Field(0.0, ge=0, allow_inf_nan=False)
    spread: float = pydantic.Field(0.0, ge=0, allow_inf_nan=False)
    """Standard deviation of the logarithm of a client's speed."""
    noise: float = pydantic.Field(0.0, ge=0, allow_inf_nan=False)
    """The same of what changes from exchange to exchange."""
    deadline: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    """Answers that need longer are not waited for."""


class Availability(pydantic.BaseModel):
    """Clients who are not there, drop out or are late, in simulation."""

    model_config = CLOSED
    share: float = pydantic.Field(1.0, gt=0, le=1)
    """Of the clients, who can be chosen in a round."""
    session: int = pydantic.Field(1, ge=1)
    """Rounds that a client is there, or away, at a stretch."""
    join: int = pydantic.Field(0, ge=0)
    """Clients join in rounds 0 to `join`, each in one of its own."""
    stay: float | None = pydantic.Field(None, ge=1, allow_inf_nan=False)
    """Rounds that a client stays on average; for ever without it."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Probability that who was chosen does not answer."""
    pace: Pace | None = None


class Executor(pydantic.BaseModel):
    """Where the clients' work runs."""

    model_config = CLOSED
    name: Literal["stacked", "serial", "ray", "auto"] = "stacked"
    memory_mb: float = pydantic.Field(1024.0, gt=0)
    """Bound on a micro-cohort of the stacked executor."""
    threads: int = pydantic.Field(1, ge=1)
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:1`: where stacked clients compute."""
    precision: Literal["full", "bf16"] = "full"
    """`bf16` runs the products of stacked clients in bfloat16, by torch's autocast."""
    workers: int | None = pydantic.Field(None, ge=1)
    """Processes of the ray executor; all cores without it."""
    inner: Literal["serial", "stacked"] = "stacked"
    """What each worker runs its clients with."""
    address: str | None = None
    """Of a Ray cluster; Ray is started on this machine without it."""
    gpus_per_worker: float = pydantic.Field(0.0, ge=0)
    worker_memory_mb: float | None = pydantic.Field(None, gt=0)
    """What a worker may allocate."""
    client_memory_mb: float | None = pydantic.Field(None, gt=0)
    """Beyond this, what clients keep between exchanges lies on the disk."""


class Deploy(pydantic.BaseModel):
    """How a deployed server treats its clients. A simulation has no use for it."""

    model_config = CLOSED
    least: int = pydantic.Field(1, ge=1)
    """Answers without which an exchange fails, and the run with it; it can be resumed."""
    deadline_s: float = pydantic.Field(600.0, gt=0)
    """After which a client that was asked and is still connected is silent."""
    patience_s: float = pydantic.Field(90.0, gt=0)
    """After which a client that was asked and is not connected is silent."""
    join_s: float = pydantic.Field(120.0, gt=0)
    """In which the clients have to be there before the first exchange; who is not is silent until it comes."""
    reconnect_s: float = pydantic.Field(20.0, gt=0)
    """In which a client tries to find a server that it lost, before it gives up on the run."""


class Config(pydantic.BaseModel):
    """A whole experiment. Sections that a strategy has no use for stay None."""

    model_config = CLOSED
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    strategy: Strategy = Strategy()
    participation: Participation | None = None
    aggregator: Aggregator | None = None
    attack: list[Attack] = []
    compression: Compression = Compression()
    optimizer: Component | None = None
    availability: Availability | None = None
    privacy: Privacy | None = None
    executor: Executor = Executor()
    deploy: Deploy = Deploy()

    def to_toml(self) -> str:
        """The experiment as a file that `load` reads."""
        return tomli_w.dumps(self.document())

    def document(self) -> dict[str, Any]:
        """Plain dicts, without what is None."""
        return self.model_dump(mode="json", exclude_none=True)


SECTIONS: dict[str, Registry] = {
    "data": data.registry,
    "data.partition": partitions.registry,
    "data.trial": data.registry,
    "data.vertical": vertical.registry,
    "model": models.registry,
    "strategy": strategies.registry,
    "participation": participation.registry,
    "participation.count": counts.registry,
    "aggregator": aggregators.registry,
    "aggregator.pre": pre.registry,
    "attack": attacks.registry,
    "compression": compression.registry,
    "compression.feedback": feedback.registry,
    "compression.down": compression.registry,
    "optimizer": optimizers.registry,
    "strategy.server": optimizers.registry,
}
"""Which room a section's component is looked up in."""

NAMED_ONLY = ("run", "executor", "privacy", "availability", "deploy")
"""Sections whose keys do not depend on their name."""

WORDS = ("data", "model", "strategy", "participation", "aggregator", "compression", "optimizer", "executor")
"""Sections that may be given as a word, the name of the component."""

CHANGEABLE = (
    "run.rounds",
    "run.evaluate_every",
    "run.evaluate_last",
    "run.evaluate_clients_every",
    "run.checkpoint_every",
    "run.checkpoint_seconds",
    "run.keep_checkpoints",
    "run.stop",
    "run.track",
    "run.out",
    "run.name",
    "deploy",
)
"""What a resumed run may change: nothing that the numbers depend on."""


def load(source: str | Path | Mapping[str, Any] | Config, changes: Sequence[str] = ()) -> Config:
    """A checked config from a TOML file (with one level of `base`), a dict or a Config, and `a.b=value` changes."""
    if isinstance(source, Config):
        document = source.document()
    elif isinstance(source, Mapping):
        document = json.loads(_as_json(source))
    else:
        document = read_file(Path(source))
    for change in changes:
        path, value = parse_change(change)
        assign(document, path, value)
    return check_document(document)


def read_file(path: Path) -> dict[str, Any]:
    """A TOML file merged over its `base`, if it names one (relative to the file)."""
    document = _toml(path)
    base = document.pop("base", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise ConfigError("base", f"the path of another config, relative to this one, is needed; {base!r} was given")
    lower = _toml(path.parent / base)
    if "base" in lower:
        raise ConfigError("base", f"{base} has a base of its own; one level is allowed: merge the two files")
    return merge(_spread(lower), _spread(document))


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any], section: str | None = None) -> dict[str, Any]:
    """`upper` over `lower`, table by table; of a component that is replaced, only the section's own keys stay."""
    merged = dict(lower)
    for key, value in upper.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = key if section is None else ""
            if inner not in NAMED_ONLY and value.get("name", old.get("name")) != old.get("name"):
                old = {name: old[name] for name in section_keys(inner) if name in old}
            merged[key] = merge(old, value, inner)
        else:
            merged[key] = value
    return merged


def parse_change(change: str) -> tuple[list[str], Any]:
    """`a.b=value`, the value read as TOML, or as a plain word; None where nothing stands after the equals sign."""
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise ConfigError(change, "a change has the form section.key=value, e.g. optimizer.lr=0.05")
    if not text.strip():
        return path.strip().split("."), None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return path.strip().split("."), value


def assign(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set `document[a][b]... = value`; None removes the key; `attack.0.share` reaches into lists.

    A new component drops the options of the old one and keeps the section's own keys; a word for a section is its name.
    """
    if len(path) == 1 and path[0] in WORDS and isinstance(value, str) and isinstance(document.get(path[0]), dict):
        path = [path[0], "name"]
    here: Any = document
    for depth, part in enumerate(path[:-1]):
        if isinstance(here, list):
            if part == str(len(here)):
                here.append({})
            here = here[_index(here, path, depth)]
        else:
            old = here.get(part, {})
            if not isinstance(old, dict | list):  # a word names a component; a number gives way to a schedule
                here[part] = {"name": old} if isinstance(old, str) else {}
            here = here.setdefault(part, [] if path[depth + 1].isdigit() else {})
        if not isinstance(here, dict | list):
            below = ".".join(path[: depth + 1])
            raise ConfigError(".".join(path), f"{below} is {here!r}, which has nothing below it to change")
    last = path[-1]
    if value is None:
        if last not in here or isinstance(here, list):
            raise ConfigError(".".join(path), "there is nothing of that name to remove")
        del here[last]
        return
    if isinstance(here, list):
        here[_index(here, path, len(path) - 1)] = value
        return
    if last == "name" and path[0] not in NAMED_ONLY and here.get("name") not in (None, value):
        # the old component's options mean nothing to the new one; the section's own keys stay
        nested = len(path) > 2 and path[0] != "attack"
        own = section_keys("" if nested else path[0])
        for key in [key for key in here if key not in own]:
            del here[key]
    here[last] = value


def section_keys(section: str) -> list[str]:
    """The keys of a component's section that are not options of the component."""
    sections: dict[str, type[Component]] = {
        "data": Data,
        "model": Model,
        "strategy": Strategy,
        "attack": Attack,
        "aggregator": Aggregator,
        "compression": Compression,
    }
    return list(sections.get(section, Component).model_fields)


def _index(items: list[Any], path: Sequence[str], depth: int) -> int:
    if not path[depth].isdigit() or int(path[depth]) >= len(items):
        raise ConfigError(".".join(path), f"a number below {len(items)} is needed where '{path[depth]}' was given")
    return int(path[depth])


def parse(document: Mapping[str, Any]) -> Config:
    """The document as a Config, with defaults; the components it names are not looked up."""
    try:
        return Config.model_validate_json(_as_json(_spread(document)), strict=True)
    except pydantic.ValidationError as error:
        raise _first(error) from None


def check_document(document: dict[str, Any]) -> Config:
    """The document as a Config whose components exist and whose options they accept."""
    config = parse(document)
    for where, component in components(config):
        SECTIONS[_room(where)].validate(component.name, component.options, where)
    if config.model.loss is not None and config.model.loss not in LOSSES:
        known = ", ".join(LOSSES)
        raise ConfigError(
            "model.loss", f"no loss '{config.model.loss}'.{nearest(config.model.loss, LOSSES)} Known: {known}"
        )
    return config


def _as_json(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(document))
    except TypeError as error:
        raise ConfigError("config", f"only numbers, words, lists and tables are allowed: {error}") from None


def components(config: Config) -> list[tuple[str, Component]]:
    """Every component of a config with its path."""
    found: list[tuple[str, Component | None]] = [
        ("data", config.data),
        ("data.partition", config.data.partition),
        ("data.trial", config.data.trial),
        ("data.vertical", config.data.vertical),
        ("model", config.model),
        ("strategy", config.strategy),
        ("strategy.server", config.strategy.server),
        ("participation", config.participation),
        ("participation.count", _component(config.participation)),
        ("aggregator", config.aggregator),
        ("compression", config.compression),
        ("compression.feedback", config.compression.feedback),
        ("compression.down", config.compression.down),
        ("optimizer", config.optimizer),
    ]
    found += [(f"attack.{i}", attack) for i, attack in enumerate(config.attack)]
    if config.aggregator is not None:
        found += [(f"aggregator.pre.{i}", step) for i, step in enumerate(config.aggregator.pre)]
    return [(where, component) for where, component in found if component is not None]


def _component(participation: Participation | None) -> Component | None:
    """The head-count where it is one by its name."""
    return participation.count if participation is not None and isinstance(participation.count, Component) else None


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Config paths whose values differ, with both values."""
    a, b = _leaves(one.document()), _leaves(other.document())
    return {path: (a.get(path), b.get(path)) for path in sorted({*a, *b}) if a.get(path) != b.get(path)}


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{path}.{key}".lstrip(".")).items()}
    return {path: value}


def _room(where: str) -> str:
    return where.rstrip("0123456789").rstrip(".")


_NESTED = (
    ("data", "partition"),
    ("data", "trial"),
    ("data", "vertical"),
    ("strategy", "server"),
    ("participation", "count"),
    ("compression", "feedback"),
    ("compression", "down"),
)
"""Keys of sections that name a component."""


def _spread(document: Mapping[str, Any]) -> dict[str, Any]:
    """A component given as a word (`participation = "uniform"`) is a table with that name."""
    spread = dict(document)
    for section in WORDS:
        if isinstance(spread.get(section), str):
            spread[section] = {"name": spread[section]}
    for section, key in _NESTED:
        table = spread.get(section)
        if isinstance(table, Mapping) and isinstance(table.get(key), str):
            spread[section] = {**table, key: {"name": table[key]}}
    if isinstance(spread.get("attack"), Mapping):
        spread["attack"] = [spread["attack"]]
    rule = spread.get("aggregator")
    if isinstance(rule, Mapping) and "pre" in rule:
        steps = rule["pre"] if isinstance(rule["pre"], list) else [rule["pre"]]
        named = [{"name": step} if isinstance(step, str) else step for step in steps]
        spread["aggregator"] = {**rule, "pre": named}
    return spread


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise ConfigError("config", f"there is no file {path}.{nearest(str(path), known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("config", f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", f"{path} is no TOML: {error}") from None


def _first(error: pydantic.ValidationError) -> ConfigError:
    """The first complaint, with its path, and the nearest known key where the key is unknown."""
    first = error.errors()[0]
    # of a value that may be of several types, pydantic names the type it tried in the path
    location = [str(part) for part in first["loc"] if part not in ("int", "Component")]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        if where == "sweep":
            return ConfigError(where, "this file describes many experiments; run it with 'fedopt sweep'")
        known = _known(location[:-1])
        return ConfigError(where, f"unknown key.{nearest(location[-1], known)} Known: {', '.join(known)}")
    if first["type"] == "missing":
        return ConfigError(where, "missing; it is needed here")
    return ConfigError(where, f"{first['msg'].removeprefix('Input ')}; {first['input']!r} was given")


def _known(location: Sequence[str]) -> list[str]:
    fields: Any = Config.model_fields
    for part in location:
        kind = fields[part].annotation
        inner = [
            t for t in getattr(kind, "__args__", (kind,)) if isinstance(t, type) and issubclass(t, pydantic.BaseModel)
        ]
        if not inner:
            return []
        fields = inner[0].model_fields
    return list(fields)
