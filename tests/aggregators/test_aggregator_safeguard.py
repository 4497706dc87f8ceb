"""Safeguard against a loop over rounds, its windows, and what is not finite."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build
from fedopt.aggregators.safeguard import Windows, safeguard
from fedopt.registry import ConfigError
from fedopt.testing import check_aggregator

KEY = keys.root(6)


def away(one: list[float], other: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))


def loop(
    rounds: list[tuple[list[int], list[list[float]]]],
    total: int,
    *,
    short: int,
    long: int,
    multiplier: float,
    cap: float,
    rank: int | None,
    released: bool,
) -> list[tuple[list[float], list[int]]]:
    """For each round the delta and who is in it."""
    d = len(rounds[0][1][0])
    good = set(range(total))
    sums: dict[str, list[list[float]]] = {}
    played = []
    for number, (clients, rows) in enumerate(rounds):
        if number % long == 0 and not released:
            good = set(range(total))
        counted = max(len([c for c in clients if c in good]), 1)
        judged = clients if released else [c for c in clients if c in good]
        kept = set(judged)
        for name, window in (("short", short), ("long", long)):
            if number % window == 0:
                sums[name] = [[0.0] * d for _ in range(total)]
            for c, row in zip(clients, rows, strict=True):
                for j in range(d):
                    sums[name][c][j] += row[j] / counted
            best, centre = math.inf, -1
            for i in judged:
                distances = sorted(away(sums[name][i], sums[name][j]) for j in judged)
                # entry 0 is the client itself, so that entry k - 1 is the k-th smallest
                last = (rank or math.ceil(len(clients) / 2 + (0 if released else 1))) - 1
                score = distances[min(last, len(distances) - 1)]
                if score < best:
                    best, centre = score, i
            for j in judged:
                gap = away(sums[name][centre], sums[name][j])
                limit = 2 * multiplier * min(cap, best)
                if gap > limit or (released and gap == limit):
                    kept.discard(j)
        good = (good - set(clients)) | kept
        delta = [0.0] * d
        for c, row in zip(clients, rows, strict=True):
            if c in kept:
                for j in range(d):
                    delta[j] += row[j] / len(kept)
        played.append((delta, sorted(kept)))
    return played


def play(options: dict[str, Any], rounds: list[tuple[list[int], list[list[float]]]], total: int) -> list[Any]:
    rule = build("safeguard", options)
    state, played = rule.init(total), []
    for clients, rows in rounds:
        updates = torch.tensor(rows, dtype=torch.float64)
        delta, state, info = rule.apply(updates, state, clients=torch.tensor(clients), key=KEY)
        played.append((delta, [c for c, trust in zip(clients, info["trust"].tolist(), strict=True) if trust > 0]))
    return played


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(13)
    moved = empty = 0
    for _ in range(100):
        total, d = draw.randint(1, 12), draw.randint(1, 5)
        long = draw.randint(1, 4)
        options: dict[str, Any] = {
            "short": draw.randint(1, long),
            "long": long,
            "multiplier": draw.uniform(0.3, 1.0),
            "cap": draw.choice([1000.0, 0.7]),
            "rank": draw.choice([None, None, draw.randint(1, total + 2)]),
            "released": draw.random() < 0.3,
        }
        rounds = []
        for _ in range(draw.randint(1, 7)):
            clients = sorted(draw.sample(range(total), draw.randint(1, total)))
            rows = [[draw.gauss(0, 1) + (3.0 if c % 4 == 1 else 0.0) for _ in range(d)] for c in clients]
            rounds.append((clients, rows))
        for (got, who), (wanted, kept) in zip(
            play(options, rounds, total), loop(rounds, total, **options), strict=True
        ):
            assert who == kept
            torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)
            moved += bool(kept)
            empty += not kept
    assert moved > 100 and empty > 5


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"released": True}], ids=str)
def test_the_laws_hold_for_other_options(options: dict[str, Any]) -> None:
    check_aggregator("safeguard", **options)


def spread(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("released", [False, True])
def test_any_minority_far_away_is_left_out(released: bool) -> None:
    honest = spread(6, 50, 0)
    attackers = torch.full((4, 50), 30.0, dtype=torch.float64)
    rule = safeguard(released=released)
    delta, state, info = rule.apply(torch.cat([attackers, honest]), rule.init(10), clients=torch.arange(10), key=KEY)
    assert bool((info["trust"][:4] == 0).all())
    torch.testing.assert_close(delta, (info["trust"][4:, None] * honest).sum(0))
    assert float(delta.abs().max()) < 5.0
    assert info["good"] == int(state.good.sum()) == int((info["trust"] > 0).sum())


def test_a_slow_push_is_seen_in_the_long_window_only() -> None:
    # far less than the honest spread in one round, but always to the same side
    found = {}
    for long in (1, 40):
        rule = safeguard(short=1, long=long)
        state = rule.init(9)
        for number in range(40):
            updates = spread(9, 600, 100 + number)
            updates[:2] += 0.2
            _, state, info = rule.apply(updates, state, clients=torch.arange(9), key=KEY)
        found[long] = info["trust"].tolist()[:2]
    assert found[1][0] > 0 and found[1][1] > 0
    assert found[40] == [0.0, 0.0]


def test_who_is_left_out_stays_out_until_the_long_window_starts_again() -> None:
    for released, back_in in ((False, 3), (True, 1)):
        rule = safeguard(long=3, short=1, released=released)
        state = rule.init(7)
        trusted = []
        for number in range(4):
            updates = spread(7, 2000, number)
            if number == 0:
                updates[0] += 500.0
            else:
                # what it did is forgotten, so that it can be out for having been out only
                state = state._replace(long=torch.zeros_like(state.long))
            _, state, info = rule.apply(updates, state, clients=torch.arange(7), key=KEY)
            trusted.append(float(info["trust"][0]) > 0)
        assert trusted == [number >= back_in for number in range(4)]


def test_only_the_sums_of_active_clients_move() -> None:
    rule = safeguard(short=2, long=3, multiplier=10.0)
    state = rule.init(5)
    _, first, _ = rule.apply(spread(5, 4, 1), state, clients=torch.arange(5), key=KEY)
    before = [t.clone() for t in (first.good, first.short, first.long)]
    active, idle = torch.tensor([1, 3, 4]), torch.tensor([0, 2])
    updates = spread(3, 4, 2)
    _, second, _ = rule.apply(updates, first, clients=active, key=KEY)
    assert all(torch.equal(x, y) for x, y in zip((first.good, first.short, first.long), before, strict=True))
    counted = float(first.good[active].sum())
    for name in ("short", "long"):
        was, now = getattr(first, name), getattr(second, name)
        assert torch.equal(now[idle], was[idle])
        torch.testing.assert_close(now[active], was[active] + updates / counted)
    # the short window starts again
    _, third, _ = rule.apply(updates, second, clients=active, key=KEY)
    assert torch.equal(third.short[idle], torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(third.short[active], updates / float(second.good[active].sum()))


def test_a_window_of_one_round_keeps_no_sums() -> None:
    rule = safeguard(short=1, long=1)
    _, state, _ = rule.apply(spread(4, 3, 0), rule.init(4), clients=torch.arange(4), key=KEY)
    assert (state.short.numel(), state.long.numel()) == (0, 0)


def test_equal_updates_are_all_good() -> None:
    updates = torch.full((6, 3), 0.1)
    delta, _, info = safeguard().apply(updates, safeguard().init(6), clients=torch.arange(6), key=KEY)
    torch.testing.assert_close(delta, updates[0])
    assert bool((info["trust"] > 0).all())


def test_where_nobody_is_good_nothing_moves() -> None:
    state = Windows(1, torch.tensor([False, False, True]), torch.zeros(0), torch.zeros(3, 2))
    updates = torch.ones(2, 2)
    rule = safeguard(noise=1.0)
    delta, after, info = rule.apply(updates, state, clients=torch.tensor([0, 1]), key=KEY)
    assert delta.tolist() == [0.0, 0.0]
    assert info["trust"].tolist() == [0.0, 0.0]
    assert info["kept_model"] == "none of 2 updates is of a client who is near the majority in both windows"
    assert after.good.tolist() == [False, False, True]
    assert after.long.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def test_the_rank_says_how_many_agree() -> None:
    # three at 0, three at 1, and one far off: of seven, the fifth smallest distance is 1
    updates = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [9.0]])
    kept = {}
    for rank in (None, 3, 5, 7):
        rule = safeguard(rank=rank)
        kept[rank] = int((rule.apply(updates, rule.init(7), clients=torch.arange(7), key=KEY)[2]["trust"] > 0).sum())
    assert kept == {None: 6, 3: 3, 5: 6, 7: 7}


def test_a_cap_below_the_scores_is_what_counts() -> None:
    updates = 1e6 * spread(6, 4, 3)
    rule = safeguard(cap=1.0)
    delta, _, info = rule.apply(updates, rule.init(6), clients=torch.arange(6), key=KEY)
    # the one in the middle is alone
    assert int((info["trust"] > 0).sum()) == 1
    assert any(torch.equal(delta, row) for row in updates)


def test_noise_comes_from_the_key() -> None:
    updates = spread(6, 2000, 4)
    clients = torch.arange(6)
    plain = safeguard().apply(updates, safeguard().init(6), clients=clients, key=KEY)[0]
    rule = safeguard(noise=0.5)
    one, again, other = (
        rule.apply(updates, rule.init(6), clients=clients, key=key)[0] for key in (KEY, KEY, keys.root(7))
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert float((one - plain).std()) == pytest.approx(0.5, rel=0.1)


def test_equal_scores_go_to_the_smaller_id_in_any_order() -> None:
    # two pairs at one distance: each of the four is as good a centre as the others
    updates = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 0.0], [7.0, 0.0]])
    rule = safeguard(rank=2, multiplier=0.6)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        ids = torch.tensor(order)
        delta, _, info = rule.apply(updates[ids], rule.init(4), clients=ids, key=KEY)
        assert delta.tolist() == [1.0, 0.0]
        assert sorted(ids[info["trust"] > 0].tolist()) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_overflow_are_left_out(dtype: torch.dtype) -> None:
    updates = spread(7, 5, 5).to(dtype)
    updates[1], updates[4] = 3e38 * updates[1].sign(), -3e38
    rule = safeguard()
    state = rule.init(7)
    for _ in range(4):
        delta, state, info = rule.apply(updates, state, clients=torch.arange(7), key=KEY)
        assert bool(torch.isfinite(delta).all())
        assert info["trust"][[1, 4]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short": 5, "long": 2}, r"^aggregator: short <= long is needed, short = 5 and long = 2 were given"),
        ({"short": 0}, r"aggregator\.short: should be greater than or equal to 1"),
        ({"multiplier": 0.0}, r"aggregator\.multiplier: should be greater than 0"),
        ({"noise": -1.0}, r"aggregator\.noise: should be greater than or equal to 0"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("safeguard", options)
