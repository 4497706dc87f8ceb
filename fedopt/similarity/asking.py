"""One strategy of a method that says what it wants to know next.

A method is a strategy with two more functions, `begin` and `proceed`: each gives the method's own state and the
questions whose answers it needs to go on. Here these become exchanges, one question each; the answers become
differences to the server's own part, are counted by group, and constants that were not given are measured first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fedopt import keys
from fedopt.compressed import NBYTES
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.ruled import by_client, refusal, ruled
from fedopt.similarity import oracles
from fedopt.similarity.grouping import Grouping, probed, probing, rare_ones
from fedopt.similarity.groups import Groups
from fedopt.similarity.groups import groups as grouped
from fedopt.similarity.home import Home, Solving, home
from fedopt.types import Batches, Exchange, Info, Named, Optimizer, Programs, Replies, Rule

STEPS = 60
"""Steps of the power iteration for a constant at most;"""

SETTLED = 1e-2
"""it ends when its result changes by less than such a share in a step,"""

AUTO = "auto"
"""In place of clients: those are found who are least like the server's data."""

ABOVE = 1.05
"""and comes to it from below."""

C = TypeVar("C", bound=type)

log = logging.getLogger(__name__)


class Constant(NamedTuple):
    """A number that a method goes by, given or to be measured."""

    name: str
    """Of the strategy's option."""
    given: float | None
    part: str
    kind: str
    """`home`: ‖∇²f - ∇²f_1‖; `clients`: the largest ‖∇²f_m - ∇²f‖; `smoothness`: ‖∇²f‖ + l2. All at the first point."""


class Question(NamedTuple):
    """What a method wants to know."""

    part: str
    """`f` or `g`."""
    point: Tensor
    """`[d]`, what is sent as the model."""
    program: str = "gradient"
    clients: Tensor = torch.zeros(0, dtype=torch.int64)
    """Who is asked; empty: the whole group."""
    down: Named = {}  # noqa: RUF012 - read-only
    """Further vectors and numbers for all."""
    passes: int = 0
    """How often a client goes over all its samples; 0: as the strategy's batches say."""


class Answer(NamedTuple):
    """What came back."""

    vector: Tensor
    """The aggregate as an ascent: the mean gradient, minus a step `[d]`."""
    beside: Tensor
    """The mean of what was told beside it, errors of compression or slopes, as a descent; else empty."""


class Turn(NamedTuple):
    """What a method says after it has got its answers."""

    own: Any
    questions: tuple[Question, ...]
    """At least one."""
    params: Tensor
    """What the server would publish now `[d]`."""
    info: Info = {}  # noqa: RUF012 - read-only


class Measured(NamedTuple):
    """A power iteration under way."""

    direction: Tensor
    steps: int
    largest: float
    done: int
    """How many of the constants are known."""


class Counted(NamedTuple):
    """What communication has cost so far."""

    rounds_f: int = 0
    rounds_g: int = 0
    messages: int = 0
    """One for each client and each direction."""
    time: float = 0.0
    """Of transmission: the longest answer of each round, in whole vectors."""


class Asking(NamedTuple):
    """State of a method."""

    round: int
    """Exchanges so far."""
    params: Tensor
    own: Any
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]
    rules: dict[str, Any]
    """State of the rule for each group."""
    previous: Named
    """What it gave before, by group."""
    constants: dict[str, float]
    measured: Measured | None
    counted: Counted
    rare: Tensor
    """Clients of group g, where they are told apart by what they answer."""
    grouping: Grouping | None = None
    """While that is asked for."""


class Method(Protocol):
    """What a strategy of this family has."""

    @property
    def aggregator(self) -> Rule: ...
    @property
    def server(self) -> Optimizer: ...
    @property
    def batches(self) -> Batches: ...
    @property
    def mu(self) -> float | None: ...
    @property
    def l2(self) -> float: ...
    @property
    def prox(self) -> Solving: ...
    def wanted(self) -> tuple[Constant, ...]: ...
    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn: ...
    def proceed(self, setting: Setting, own: Any, answers: tuple[Answer, ...], key: Tensor) -> Turn: ...


class Setting(NamedTuple):
    """What a method is told of the experiment."""

    problem: Problem
    groups: Groups
    home: Home
    constants: dict[str, float]
    mu: float
    clients: int
    """How many there are in f."""

    @property
    def two(self) -> bool:
        return self.groups.two

    @property
    def nobody(self) -> Tensor:
        """No names: the whole group is asked."""
        return self.groups.g[:0]

    def need_two(self) -> None:
        """Raises ConfigError where there are no two groups."""
        if not self.two:
            raise ConfigError(
                "strategy.rare", "two groups are needed; name the clients, or the classes, of the rare one"
            )

    def real(self, part: str) -> str:
        """The group that is in this part: the more similar one is f."""
        return {"f": "g", "g": "f"}[part] if self.constants.get("swapped") else part

    def difference(self, part: str, x: Tensor, answer: Answer) -> Tensor:
        """P_f(x) = ∇f(x) - ∇f_1(x), or P_g(x), from the mean gradient of the group."""
        return answer.vector - self.home.gradient(self.real(part), x)

    @property
    def delta(self) -> float:
        """δ of all groups together."""
        return sum(value for name, value in self.constants.items() if name.startswith("delta"))

    @property
    def parts(self) -> tuple[str, ...]:
        return ("f", "g") if self.two else ("f",)

    def everywhere(self, x: Tensor, program: str = "gradient") -> tuple[Question, ...]:
        """Every group's gradient at a point."""
        return tuple(Question(part, x, program) for part in self.parts)

    def differences(self, x: Tensor, answers: Sequence[Answer]) -> Tensor:
        """∇(h - h_1)(x), from every group's answer."""
        each = [self.difference(part, x, answer) for part, answer in zip(self.parts, answers, strict=True)]
        return torch.stack(each).sum(dim=0)


def at_home(delta: float | None, two: bool) -> tuple[Constant, ...]:
    """δ = ‖∇²h - ∇²h_1‖ as a constant, or by halves for two groups."""
    if not two:
        return (Constant("delta", delta, "f", "home"),)
    half = None if delta is None else 0.5 * delta
    return (Constant("delta_f", half, "f", "home"), Constant("delta_g", half, "g", "home"))


def of_groups(delta_f: float | None, delta_g: float | None) -> tuple[Constant, ...]:
    """δ_f and δ_g, of each group to the server's data."""
    return (Constant("delta_f", delta_f, "f", "home"), Constant("delta_g", delta_g, "g", "home"))


def of_clients(delta: float | None) -> tuple[Constant, ...]:
    """δ of every client to the mean of all."""
    return (Constant("delta", delta, "f", "clients"),)


def by_questions(cls: C) -> C:
    """A class with `wanted`, `begin` and `proceed` as a strategy: decorates it with the functions below."""
    for function in (programs, init, plan, absorb, model):
        setattr(cls, function.__name__, function)
    return cls


def programs(method: Method, problem: Problem) -> Programs:
    """The clients' programs of a method; `passes` of its options is for its proximal steps, `noise` for its answers."""
    parts = _groups(method, problem, torch.zeros(0, dtype=torch.int64))
    passes, noise = getattr(method, "passes", 0), getattr(method, "noise", 0.0)
    return oracles.programs(problem, parts, passes=passes, l2=method.l2, noise=noise)


def init(method: Method, problem: Problem, key: Tensor) -> Asking:
    """First state. Raises ConfigError where nothing tells how convex the objective is."""
    if method.mu is None and method.l2 <= 0:
        raise ConfigError(
            "strategy.mu", "the modulus of strong convexity is needed: set strategy.l2, or strategy.mu if it is known"
        )
    x = problem.initial["params"]
    constants: dict[str, float] = {}
    start = Measured(_direction(problem, keys.fold(key, "power")), 0, 0.0, 0)
    empty = torch.zeros(problem.d if "previous" in method.aggregator.needs else 0, dtype=problem.dtype)
    state = Asking(
        0,
        x,
        None,
        (),
        (),
        {name: method.aggregator.init(problem.clients) for name in "fg"},
        dict.fromkeys("fg", empty),
        constants,
        start,
        Counted(),
        torch.zeros(0, dtype=torch.int64),
    )
    if getattr(method, "rare", ()) != AUTO:
        return _measuring(method, problem, state, key)
    if problem.clients < 2:
        raise ConfigError("strategy.rare", "'auto' tells clients apart; there is one alone")
    setting = _setting(method, problem, state)
    grouping = probing(setting.home, x, problem.clients, key)
    return state._replace(grouping=grouping, questions=(Question("f", x),))


def plan(method: Method, problem: Problem, state: Asking, key: Tensor) -> Exchange:
    """The next question as an exchange."""
    question = state.questions[len(state.answers)]
    setting = _setting(method, problem, state)
    real = setting.real(question.part)
    clients = question.clients if question.clients.numel() else setting.groups.clients(real)
    there = clients[torch.isin(clients, problem.pool)] if problem.there is not None else clients
    rows = method.aggregator.scope != "linear" or state.grouping is not None or _by_client(method, state)
    program = question.program
    if setting.groups.classes:
        program += real
    own = {}
    if question.program == "curvature":
        own["direction"] = question.down["direction"].expand(there.numel(), -1)
    return Exchange(
        program=program,
        clients=there,
        down={"params": question.point, **{n: v for n, v in question.down.items() if n != "direction"}},
        own=own,
        batches=Batches(method.batches.split, epochs=question.passes, shuffle=False)
        if question.passes
        else method.batches,
        reduce="rows" if rows else "mean",
    )


def absorb(method: Method, problem: Problem, state: Asking, replies: Replies, key: Tensor) -> tuple[Asking, Info]:
    """An answer; the method goes on when it has all that it asked for. What nobody answered is asked once more."""
    question = state.questions[len(state.answers)]
    setting = _setting(method, problem, state)
    real = setting.real(question.part)
    part = "fg" if state.grouping is not None else question.part  # everybody is asked while groups are found
    counted = _counted(state.counted, part, replies, setting)
    state = state._replace(round=state.round + 1, counted=counted)
    told: Info = {"group": question.part, **counted._asdict()}
    refused = refusal(method.aggregator, replies)
    if refused is None and float(replies.weights.sum()) <= 0:
        refused = f"nobody who answered has samples of part {real}"
    if refused is not None:
        return state, {**told, "kept_model": refused}
    if state.grouping is not None:
        state, found = _grouped(method, setting, state, replies, key)
        return state, {**told, **found}
    if state.measured is not None:
        state, found = _measure(method, setting, state, replies, key)
        return state, {**told, **found}
    vector = oracles.DIFFERENCE if oracles.DIFFERENCE in replies.vectors else "delta"
    made = ruled(
        method.aggregator,
        state.rules[real],
        problem,
        lambda: programs(method, problem),
        {"params": question.point},
        state.previous[real],
        replies,
        key,
        vector=vector,
    )
    rest = [rows for name, rows in replies.vectors.items() if name in (oracles.ERROR, oracles.SLOPE)]
    beside = _mean(rest[0], replies.weights).to(problem.dtype) if rest else made.vector[:0]
    keep = made.vector if state.previous[real].numel() else state.previous[real]
    state = state._replace(
        rules={**state.rules, real: made.state},
        previous={**state.previous, real: keep},
        answers=(*state.answers, Answer(-made.vector, beside)),
    )
    told |= {**by_client(made.info, replies.clients), "delta_norm": float(made.vector.norm())}
    if len(state.answers) < len(state.questions):
        return state, told
    turn = method.proceed(setting, state.own, state.answers, keys.fold(key, "method"))
    return _turned(state, turn), {**told, **turn.info}


def model(method: Method, problem: Problem, state: Asking) -> Named:
    """What the server would publish now."""
    return {"params": state.params}


def _turned(state: Asking, turn: Turn) -> Asking:
    return state._replace(own=turn.own, questions=turn.questions, answers=(), params=turn.params)


def _setting(method: Method, problem: Problem, state: Asking) -> Setting:
    parts = _groups(method, problem, state.rare)
    own = home(problem, parts, method.l2, method.prox, method.server)
    mu = method.mu if method.mu is not None else method.l2
    return Setting(problem, parts, own, state.constants, mu, parts.f.numel())


def _groups(method: Method, problem: Problem, found: Tensor) -> Groups:
    named = getattr(method, "rare", ())
    return grouped(problem, found.tolist() if named == AUTO else named, getattr(method, "rare_classes", ()))


def _grouped(method: Method, setting: Setting, state: Asking, replies: Replies, key: Tensor) -> tuple[Asking, Info]:
    """One probe more; then who is rare. A probe that somebody did not answer is made once more."""
    assert state.grouping is not None
    if replies.clients.numel() < setting.problem.clients:
        return state, {"kept_model": "everybody has to answer while groups are found"}
    grouping = probed(state.grouping, setting.home, -replies.vectors["delta"])
    if grouping.asked < grouping.points.shape[0]:
        question = Question("f", grouping.points[grouping.asked])
        return state._replace(grouping=grouping, questions=(question,)), {}
    rare = rare_ones(grouping, getattr(method, "rare_share", None))
    state = state._replace(grouping=None, rare=rare, questions=())
    return _measuring(method, setting.problem, state, key), {"rare": rare.tolist()}


def _counted(before: Counted, part: str, replies: Replies, setting: Setting) -> Counted:
    asked = replies.exchange.clients.numel()
    longest = 0.0
    for name in replies.vectors:
        nbytes = replies.metrics.get(NBYTES + name)
        whole = 4.0 * setting.problem.d  # codes hold float32
        longest += 1.0 if nbytes is None else float(nbytes.max()) / whole if nbytes.numel() else 0.0
    return Counted(
        before.rounds_f + ("f" in part),
        before.rounds_g + ("g" in part),
        before.messages + asked + replies.clients.numel() + len(replies.rejected),
        before.time + longest,
    )


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    return (weights[:, None] * rows).sum(dim=0) / weights.sum()


def _direction(problem: Problem, key: Tensor) -> Tensor:
    drawn = keys.normal(key, problem.d, dtype=problem.dtype)
    unit: Tensor = drawn / drawn.norm()
    return unit


def _by_client(method: Method, state: Asking) -> bool:
    """Whether a constant is measured that compares clients."""
    return state.measured is not None and method.wanted()[state.measured.done].kind == "clients"


def _measuring(method: Method, problem: Problem, state: Asking, key: Tensor) -> Asking:
    """The state with the question for the next constant that is not given, or with the method's first questions."""
    wanted, measured = method.wanted(), state.measured
    assert measured is not None
    constants = dict(state.constants)
    while measured.done < len(wanted) and wanted[measured.done].given is not None:
        constants[wanted[measured.done].name] = float(wanted[measured.done].given or 0.0)
        measured = measured._replace(done=measured.done + 1)
    if measured.done < len(wanted):
        constant = wanted[measured.done]
        word = keys.fold(key, "direction", measured.done)
        direction = _direction(problem, word)
        question = Question(constant.part, state.params, "curvature", down={"direction": direction})
        return state._replace(
            constants=constants, measured=Measured(direction, 0, 0.0, measured.done), questions=(question,), answers=()
        )
    if constants.get("delta_f", 0.0) > constants.get("delta_g", math.inf):
        log.warning(
            "group g is nearer to the server's data (%.3g) than f (%.3g): they change places",
            constants["delta_g"],
            constants["delta_f"],
        )
        constants |= {"delta_f": constants["delta_g"], "delta_g": constants["delta_f"], "swapped": 1.0}
    state = state._replace(constants=constants, measured=None)
    turn = method.begin(_setting(method, problem, state), state.params, keys.fold(key, "method"))
    return _turned(state, turn)


def _measure(method: Method, setting: Setting, state: Asking, replies: Replies, key: Tensor) -> tuple[Asking, Info]:
    """One step of the power iteration: D u for the direction u, whose length tends to ‖D‖."""
    assert state.measured is not None
    measured, constant = state.measured, method.wanted()[state.measured.done]
    rows, u = -replies.vectors["delta"], state.measured.direction
    mean = _mean(rows, replies.weights) if rows.shape[0] > 1 else rows[0]
    if constant.kind == "home":
        image = mean - setting.home.curvature(setting.real(constant.part), state.params, u)
    elif constant.kind == "clients":  # of the one that is farthest from the mean now
        images = rows - mean
        image = images[images.norm(dim=1).argmax()]
    else:
        image = mean + method.l2 * u
    largest = float(image.norm())
    steps = measured.steps + 1
    info: Info = {constant.name: largest}
    settled = abs(largest - measured.largest) <= SETTLED * largest
    if largest > 0 and not settled and steps < STEPS:
        direction = image / largest
        question = state.questions[0]._replace(down={"direction": direction})
        return state._replace(measured=Measured(direction, steps, largest, measured.done), questions=(question,)), info
    floor = 1e-6 * max(setting.mu, 1e-12)  # equal data has no difference at all
    known = {**state.constants, constant.name: max(ABOVE * max(largest, measured.largest), floor)}
    state = state._replace(constants=known, measured=measured._replace(done=measured.done + 1))
    return _measuring(method, setting.problem, state, key), info
