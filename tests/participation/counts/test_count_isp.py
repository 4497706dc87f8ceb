"""ISP against its definition in loops, the closed form of a quadratic, and the numbers of its definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.participation import counts
from fedopt.participation.counts import Count
from fedopt.participation.counts import isp as definition
from fedopt.participation.counts.isp import Rule, Searching
from fedopt.registry import ConfigError
from fedopt.types import Exchange, Replies

Loss = Callable[[Tensor], Tensor]


def isp(**options: Any) -> Count:
    return counts.of({"name": "isp", "warmup": 0, "warmup_epochs": None, **options}, None)


def rule(**options: Any) -> Rule:
    return definition.isp(**options).rule


def answers(rows: Tensor, clients: Tensor | None = None, weights: Tensor | None = None) -> Replies:
    n = len(rows)
    ids = torch.arange(n) if clients is None else clients
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights
    exchange = Exchange("train", ids, {"params": torch.zeros(rows.shape[1], dtype=rows.dtype)})
    return Replies(exchange, ids, {"delta": rows}, weights, {}, {})


def uniformly(count: int, pool: Tensor, key: Tensor) -> Tensor:
    return pool[keys.sample(key, pool.numel(), count)].sort().values


def searched(
    many: Count, rows: Tensor, loss: Loss, draw: Any = uniformly, *, clients: int | None = None, **more: Any
) -> tuple[Searching, dict[str, Any]]:
    """The state after one search round, and what it says."""
    state = many.init(_Clients(clients or len(rows)))
    offers = {"draw": draw, "key": keys.root(5), "loss": loss}
    state, info = many.observe(state, answers(rows, **more), **{o: offers[o] for o in many.needs})
    return state, info["search"]


class _Clients:
    def __init__(self, clients: int) -> None:
        self.clients = clients


def quadratic(clients: int, spread: float) -> tuple[Tensor, Loss]:
    """Updates -(x + ζ_i) for F = ‖x‖² / 2 with ‖x‖ = 1, sum ζ_i = 0 and ‖ζ_i‖² = spread.

    The ζ_i are corners of a simplex at right angles to x, so every set of m clients has the same mean loss.
    """
    corners = torch.eye(clients, dtype=torch.float64) - 1.0 / clients
    zeta = torch.cat([math.sqrt(spread / (1 - 1 / clients)) * corners, torch.zeros(clients, 1).double()], dim=1)
    x = torch.zeros(clients + 1, dtype=torch.float64)
    x[-1] = 1.0
    return -(x + zeta), lambda deltas: 0.5 * (x + deltas).square().sum(dim=1)


@pytest.mark.parametrize(("clients", "wanted"), [(100, 24), (900, 30), (3000, 30)])
def test_the_closed_form_and_its_limit(clients: int, wanted: int) -> None:
    rows, loss = quadratic(clients, 30.0)
    many = isp(start=40, least=15, reference="last", subsets=2, form="guarded")
    state, info = searched(many, rows, loss)
    assert info["found"] == state.number == wanted == math.floor(clients / (1 + (clients - 1) / 30)) + 1
    change = {t["clients"]: t["loss"] - 0.5 for t in info["tried"]}
    if clients == 100:
        for m, value in {20: 0.10606, 22: 0.03719, 23: 0.00725, 24: -0.02020}.items():
            assert change[m] == pytest.approx(value, abs=5e-6)


def test_the_expectation_is_that_of_all_sets() -> None:
    """With draws that go through all sets as often, the mean is exact; 60 is a multiple of the number of each size."""
    torch.manual_seed(3)
    rows, x = torch.randn(6, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 2.0, 1.0, 3.0, 5.0], dtype=torch.float64)
    cycles = {k: itertools.cycle(itertools.combinations(range(6), k)) for k in range(1, 7)}

    def in_turn(count: int, pool: Tensor, key: Tensor) -> Tensor:
        return pool[torch.tensor(next(cycles[count]))]

    many = isp(start=6, least=1, reference="last", subsets=60)
    _, info = searched(
        many, rows, lambda deltas: (x + deltas).square().sum(dim=1) + 100.0 * (deltas.norm(dim=1) > 0), in_turn,
        weights=weights,
    )  # fmt: skip
    assert info["found"] is None and len(info["tried"]) == 6
    for tried in info["tried"]:
        total, sets = 0.0, list(itertools.combinations(range(6), tried["clients"]))
        for chosen in sets:
            point = x.tolist()
            share = sum(float(weights[i]) for i in chosen)
            for i in chosen:
                for j in range(4):
                    point[j] += float(weights[i]) / share * float(rows[i, j])
            total += sum(p * p for p in point) + 100.0
        assert tried["loss"] == pytest.approx(total / len(sets), rel=1e-12)


def falling(values: list[float]) -> Callable[[int], Loss]:
    """F(x_t) by round, and what every candidate has: just below the last one."""
    return lambda t: lambda deltas: torch.full((len(deltas),), values[t], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"form": "paper"}, 3.0),
        ({"reference": "last"}, 2.0),
        ({"form": "guarded"}, 2.0),
        ({}, 2.0),
        ({"form": "paper", "span": 1.0}, 2.0),
    ],
)
def test_reference_values(options: dict[str, Any], wanted: float) -> None:
    many = isp(start=2, warmup=1, period=20, **({"span": 3.0} | options))
    state, rows = many.init(_Clients(4)), torch.zeros(4, 2, dtype=torch.float64)
    losses = falling([4.0, 2.0])
    for t in range(2):
        offers = {"draw": uniformly, "key": keys.root(t), "loss": losses(t)}
        state, info = many.observe(state, answers(rows), **offers)
    assert info["search"]["reference"] == wanted and info["search"]["loss"] == 2.0


@pytest.mark.parametrize(("rounding", "wanted"), [("floor", 6), ("half_up", 7)])
def test_smoothing(rounding: str, wanted: int) -> None:
    many = isp(start=8, least=5, rounding=rounding, reference="last", form="guarded")
    better: Loss = lambda deltas: 1.0 - 0.1 * (deltas.norm(dim=1) > 0).to(torch.float64)  # noqa: E731
    rows = torch.ones(10, 2, dtype=torch.float64)
    state, info = searched(many, rows, better)
    assert info["found"] == 5 == state.number, "the first search is taken as it is"
    state = state._replace(round=0, number=8)
    state, _ = many.observe(state, answers(rows), draw=uniformly, key=keys.root(0), loss=better)
    assert state.number == wanted


def test_without_a_head_count_that_helps_the_last_one_stays() -> None:
    worse: Loss = lambda deltas: deltas.norm(dim=1)  # noqa: E731
    rows = torch.ones(10, 2, dtype=torch.float64)
    for options, wanted in (({}, 8), ({"fallback": 12, "most": 9}, 9), ({"fallback": 3}, 3)):
        state, info = searched(isp(start=8, form="guarded", **options), rows, worse)
        assert info["found"] is None and state.number == wanted and info["clients"] == wanted
    many = isp(start=8, form="guarded")
    state, _ = many.observe(state, answers(rows), draw=uniformly, key=keys.root(0), loss=worse)
    assert state.number == 3


@pytest.mark.parametrize(
    ("form", "start", "wanted"),
    [
        ("paper", 20, ("ema", 1, None, 20, None, 0.5, "taken", "stay")),
        ("guarded", 20, ("min", 5, None, 20, None, 0.5, "taken", "stay")),
        ("guarded", 21, ("min", 6, None, 21, None, 0.5, "taken", "stay")),
        ("steady", 20, ("best", 10, 25, 10, 10, 0.25, "smoothed", "largest")),
        ("steady", 7, ("best", 4, 9, 4, 4, 0.25, "smoothed", "largest")),
    ],
)
def test_what_forms_stand_for(form: str, start: int, wanted: tuple[Any, ...]) -> None:
    assert rule(start=start, form=form) == wanted


def test_what_is_given_goes_before_the_form() -> None:
    given = rule(start=20, begin=12, smoothing=1.0, most=15, unmet="stay")
    assert given == ("best", 10, 15, 12, 12, 1.0, "smoothed", "stay")
    assert rule(start=20, least=3).begin == 3, "it begins at the least, whatever that is"
    assert rule(start=20, least=3, warmup_clients=6).warmup_clients == 6


def test_a_steady_head_count_follows_slowly_and_stays_within_its_bounds() -> None:
    """From 4, with the last k that was tried where none will do: ⌊0.75 · 4 + 0.25 · 8⌋, then ⌊0.75 · 5 + 0.25 · 10⌋."""
    many, wanted = isp(start=8, period=2), [5, 6, 7, 7, 7]
    worse: Loss = lambda deltas: deltas.norm(dim=1)  # noqa: E731
    state, told = many.init(_Clients(30)), []
    for t in range(10):
        ask = many.ask(state, 30)
        rows = torch.ones(ask.number, 2, dtype=torch.float64)
        state, info = many.observe(state, answers(rows), draw=uniformly, key=keys.root(t), loss=worse)
        if ask.rows:
            assert info["search"]["found"] is None
            assert info["search"]["tried"][-1]["clients"] == min(ask.number, 10)
            told.append(state.number)
    assert told == wanted
    better: Loss = lambda deltas: 1.0 - 0.1 * (deltas.norm(dim=1) > 0).to(torch.float64)  # noqa: E731
    for number, after in ((10, 8), (5, 4), (4, 4)):
        state = many.init(_Clients(30))._replace(number=number)
        state, _ = many.observe(state, answers(rows), draw=uniformly, key=keys.root(0), loss=better)
        assert state.number == after


def test_the_best_is_that_of_the_rounds_since_the_last_search() -> None:
    """F(x_t) = 5, 3, 6 | 7, 4, 9 with a search in every third round; the average is above all that."""
    many = isp(start=2, warmup=2, period=3, span=1e9, least=1)
    state, rows, seen = many.init(_Clients(4)), torch.zeros(4, 2, dtype=torch.float64), []
    losses = falling([5.0, 3.0, 6.0, 7.0, 4.0, 9.0])
    for t in range(6):
        offers = {"draw": uniformly, "key": keys.root(t), "loss": losses(t)}
        state, info = many.observe(state, answers(rows), **offers)
        seen.append(info["search"].get("reference"))
    assert seen == [None, None, 3.0, None, None, 4.0]


@pytest.mark.parametrize(("clients", "wanted"), [(48, 761), (47, 748)])
def test_uploads_are_the_sum_of_head_counts(clients: int, wanted: int) -> None:
    """150 rounds, 5 of warm-up, a search every 20, everybody in the pool: as published, one client all the time."""
    many = isp(start=20, warmup=5, period=20, form="paper", pool_factor=None, subsets=2)
    state, uploads, between = many.init(_Clients(clients)), 0, set()
    for t in range(150):
        ask = many.ask(state, clients)
        uploads += ask.number
        search = t >= 5 and (t - 5) % 20 == 0
        assert ask.number == clients if t < 5 or search else ask.rows is False
        if t > 5 and not search:
            between.add(ask.number)
        rows = torch.zeros(ask.number, 2, dtype=torch.float64)
        loss = falling([1.0 / (1 + t) for t in range(150)])(t)
        state, _ = many.observe(state, answers(rows), draw=uniformly, key=keys.root(t), loss=loss)
    assert uploads == wanted and between == {1}


def test_pools_and_epochs() -> None:
    options = {"name": "isp", "start": 7, "warmup": 2, "period": 3, "pool_factor": 1.5}
    many = counts.of({**options, "form": "guarded"}, None)
    state, seen = many.init(_Clients(30)), []
    worse: Loss = lambda deltas: deltas.norm(dim=1)  # noqa: E731
    for t in range(7):
        ask = many.ask(state, 30)
        seen.append(tuple(ask))
        rows = torch.ones(ask.number, 2, dtype=torch.float64)
        state, _ = many.observe(state, answers(rows), draw=uniformly, key=keys.root(t), loss=worse)
    pool, alone = (11, None, True), (7, None, False)
    assert seen == [(11, 3, False)] * 2 + [pool, alone, alone, pool, alone]
    assert many.ask(state._replace(round=2), 9).number == 9
    fixed = counts.of({"name": "isp", "start": 7, "pool": 12, "form": "guarded"}, None)
    assert fixed.ask(fixed.init(_Clients(30)), 30).number == 12
    steady = counts.of(options, None)
    state = steady.init(_Clients(30))
    asked = [steady.ask(state._replace(round=t), 30) for t in range(4)]
    assert [tuple(ask) for ask in asked] == [(4, 3, False)] * 2 + [(6, None, True), (4, None, False)]
    many = state._replace(round=2, number=8)
    assert steady.ask(many, 30).number == 9, "nobody trains beyond the most that can be found, 5 / 4 of 7"
    assert counts.of({**options, "pool": 12}, None).ask(many, 30).number == 12
    assert counts.of({**options, "pool_factor": None}, None).ask(many, 30).number == 30


def test_a_selector_that_always_gives_the_same_clients_is_evaluated_once() -> None:
    torch.manual_seed(1)
    rows, asked = torch.randn(12, 5, dtype=torch.float64), []

    def loss(deltas: Tensor) -> Tensor:
        asked.append(len(deltas))
        return (deltas - 0.2).square().sum(dim=1)

    found = []
    for subsets in (1, 10):
        asked.clear()
        _, info = searched(
            isp(start=12, subsets=subsets, reference="last"), rows, loss, lambda count, pool, key: pool[:count]
        )
        assert set(asked) == {1}
        found.append((info["found"], info["tried"]))
    assert found[0] == found[1]


def test_more_clients_are_needed_where_they_differ() -> None:
    found = []
    for spread in (0.01, 10.0, 60.0):
        rows, loss = quadratic(50, spread)
        found.append(searched(isp(start=40, least=1, reference="last", subsets=2), rows, loss)[1]["found"])
    assert found[0] == 1 and found == sorted(found) and found[1] < found[2]


def test_candidates_from_all_clients_count_those_who_sent_nothing() -> None:
    rows = torch.ones(3, 1, dtype=torch.float64)
    everybody: Any = lambda count, pool, key: pool[:count]  # noqa: E731
    many = isp(start=4, least=2, search_pool="all", reference="last", subsets=1)
    clients = torch.tensor([0, 4, 5])
    _, info = searched(many, rows, lambda deltas: deltas[:, 0], everybody, clients=8)
    assert [t["loss"] for t in info["tried"]] == [pytest.approx(1.0), pytest.approx(1.0)]
    state = many.init(_Clients(8))
    offers = {"draw": everybody, "key": keys.root(0), "loss": lambda deltas: deltas[:, 0]}
    _, info = many.observe(state, answers(rows, clients), **offers)
    assert [t["loss"] for t in info["search"]["tried"]] == [pytest.approx(1 / 2), pytest.approx(1 / 3)]


def test_clients_may_evaluate_the_candidates() -> None:
    """Clients that all have the server's loss lead to what the server finds, candidate by candidate."""
    torch.manual_seed(2)
    rows = torch.randn(9, 3, dtype=torch.float64)
    x = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
    loss: Loss = lambda deltas: (x + deltas).square().sum(dim=1)  # noqa: E731
    options: dict[str, Any] = {"start": 9, "least": 1, "subsets": 4, "reference": "last"}
    server, wanted = searched(isp(**options), rows, loss)
    assert wanted["found"] is not None and wanted["found"] > 1
    many = isp(**options, validation="clients")
    assert many.surveys == {"loss"} and "loss" not in many.needs
    state, nothing = many.observe(many.init(_Clients(9)), answers(rows), draw=uniformly, key=keys.root(5))
    assert nothing == {}
    questions = 0
    while (asked := many.survey(state, torch.arange(9), keys.root(0))) is not None:
        questions += 1
        assert asked.candidate is not None and torch.equal(asked.clients, torch.arange(9))
        value = loss(asked.candidate[None]).expand(9) + torch.linspace(-1, 1, 9, dtype=torch.float64)
        reply = answers(rows[:, :0])._replace(metrics={"loss": value})
        state, info = many.heard(state, reply)
    assert info["search"]["found"] == wanted["found"] and state.number == server.number
    assert questions == 1 + 4 * wanted["found"], "and no more is asked once it is found"


def test_a_search_changes_nothing_but_the_head_count() -> None:
    rows, loss = quadratic(20, 5.0)
    many = isp(start=20, least=1)
    before = many.init(_Clients(20))
    after, _ = searched(many, rows, loss)
    kept = {"population", "pending"}
    assert all(getattr(before, name) == getattr(after, name) for name in kept)
    again, _ = searched(many, rows, loss)
    assert again == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 1}, r"participation\.count\.period: should be greater than or equal to 2"),
        ({"start": 3, "least": 5}, "least = 5 is above start = 3; lower least or raise start"),
        ({"start": 9, "most": 4}, "begin = 5 is not between least = 5 and most = 4; change one of them"),
        ({"start": 9, "begin": 2}, "begin = 2 is not between least = 5 and most = 12; change one of them"),
        ({"pool_factor": 0.5}, r"participation\.count\.pool_factor: should be greater than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        isp(**options)


def test_more_clients_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"participation\.count\.start: 20 clients are asked for, and there are 5"):
        isp().init(_Clients(5))
