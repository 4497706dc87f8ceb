"""FoolsGold against loops over rounds, twins, and what stays of those who are away."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt.aggregators import build
from fedopt.aggregators.foolsgold import Histories, foolsgold
from fedopt.registry import ConfigError
from fedopt.testing import check_aggregator


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def loop(
    rounds: list[tuple[list[int], list[list[float]]]], kappa: float, normalise: bool
) -> list[tuple[list[float], list[float]]]:
    histories: dict[int, list[float]] = {}
    played = []
    for clients, rows in rounds:
        for c, row in zip(clients, rows, strict=True):
            before = histories.get(c, [0.0] * len(row))
            histories[c] = [a + b for a, b in zip(before, row, strict=True)]
        alike = {(i, j): cosine(histories[i], histories[j]) for i in clients for j in clients if i != j}
        nearest = {i: max([0.0] + [alike[i, j] for j in clients if j != i]) for i in clients}
        alpha = {}
        for i in clients:
            worst = 0.0
            for j in clients:
                if j != i:
                    s = max(alike[i, j], 0.0)
                    if nearest[j] > nearest[i]:
                        s = s * nearest[i] / nearest[j]
                    worst = max(worst, s)
            alpha[i] = 1.0 - worst
        top = max(alpha.values())
        weights = []
        for i in clients:
            a = alpha[i] / top
            weights.append(1.0 if a == 1.0 else min(max(kappa * (math.log(a / (1.0 - a)) + 0.5), 0.0), 1.0))
        if normalise:
            weights = [w / sum(weights) for w in weights]
        delta = [sum(w * row[j] for w, row in zip(weights, rows, strict=True)) for j in range(len(rows[0]))]
        played.append((delta, weights))
    return played


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(16)
    between = 0
    for _ in range(100):
        total, d = draw.randint(1, 10), draw.randint(2, 6)
        kappa, normalise = draw.choice([1.0, 0.3, 2.5]), draw.random() < 0.5
        common = [draw.gauss(0, 1) for _ in range(d)]
        rounds = []
        for _ in range(draw.randint(1, 5)):
            clients = sorted(draw.sample(range(total), draw.randint(1, total)))
            rows = [[draw.gauss(0, 1) + 2.0 * (c % 2) * x for x in common] for c in clients]
            rounds.append((clients, rows))
        rule = build("foolsgold", {"kappa": kappa, "normalise": normalise})
        state = rule.init(total)
        for (clients, rows), (wanted, weights) in zip(rounds, loop(rounds, kappa, normalise), strict=True):
            updates = torch.tensor(rows, dtype=torch.float64)
            got, state, info = rule.apply(updates, state, clients=torch.tensor(clients))
            torch.testing.assert_close(info["trust"], torch.tensor(weights, dtype=torch.float64), rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-8, atol=1e-9)
            between += sum(0.0 < w < max(weights) for w in weights)
    assert between > 50


def varied(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sybils_with_one_aim_lose_their_weight() -> None:
    aim = varied(1, 80, 0)
    rule = foolsgold()
    state = rule.init(12)
    for number in range(5):
        updates = varied(12, 80, 10 + number)
        updates[:7] = 3.0 * aim + 0.5 * updates[:7]  # more than half of all
        delta, state, info = rule.apply(updates, state, clients=torch.arange(12))
        assert info["trust"][:7].tolist() == [0.0] * 7
        torch.testing.assert_close(info["trust"][7:], torch.full((5,), 0.2, dtype=torch.float64))
        torch.testing.assert_close(delta, updates[7:].mean(0))


def test_sybils_who_differ_in_each_round_are_seen_in_their_histories() -> None:
    aim = varied(1, 60, 1)
    rule = foolsgold()
    state, first = rule.init(8), None
    for number in range(60):
        updates = varied(8, 60, 30 + number)
        updates[:3] += aim
        _, state, info = rule.apply(updates, state, clients=torch.arange(8))
        first = info["trust"] if first is None else first
    assert first is not None and float(first[:3].min()) > 0.0
    assert float(info["trust"][:3].max()) == 0.0
    assert float(info["trust"][3:].min()) > 0.0


def test_an_honest_client_is_pardoned_for_looking_a_little_like_a_sybil() -> None:
    # without pardoning, the third would weigh as much less as it is like the two twins
    rows = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.7, math.sqrt(0.51), 0.0], [0.0, 0.0, 1.0]]
    updates = torch.tensor(rows, dtype=torch.float64)
    trust = foolsgold(normalise=False).apply(updates, foolsgold().init(4), clients=torch.arange(4))[2]["trust"]
    alpha = 1.0 - 0.7 * 0.7
    wanted = math.log(alpha / (1.0 - alpha)) + 0.5
    assert 0.5 < wanted < 0.6
    torch.testing.assert_close(trust, torch.tensor([0.0, 0.0, wanted, 1.0], dtype=torch.float64))


def test_the_sum_grows_with_the_clients_and_the_mean_does_not() -> None:
    updates = torch.eye(5, dtype=torch.float64)
    clients = torch.arange(5)
    one = foolsgold().apply(updates, foolsgold().init(5), clients=clients)[0]
    rule = foolsgold(normalise=False)
    torch.testing.assert_close(one, torch.full((5,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(rule.apply(updates, rule.init(5), clients=clients)[0], 5.0 * one)


def test_histories_of_absent_clients_stay() -> None:
    rule = foolsgold()
    state = rule.init(5)
    assert state.sums.shape == (5, 0)
    everybody = varied(5, 3, 2)
    _, first, _ = rule.apply(everybody, state, clients=torch.arange(5))
    before = first.sums.clone()
    active = torch.tensor([0, 3])
    updates = varied(2, 3, 3)
    _, second, _ = rule.apply(updates, first, clients=active)
    assert torch.equal(first.sums, before)
    assert torch.equal(second.sums[[1, 2, 4]], everybody[[1, 2, 4]])
    assert torch.equal(second.sums[active], everybody[active] + updates)


@pytest.mark.parametrize("rows", [[[0.3, 0.1, 7.0]] * 4, [[1e-3, 2.0, 0.7], [2e-3, 4.0, 1.4]]])
def test_where_all_are_alike_nothing_moves(rows: list[list[float]]) -> None:
    updates = torch.tensor(rows)
    delta, _, info = foolsgold().apply(updates, foolsgold().init(9), clients=torch.arange(len(rows)))
    assert delta.tolist() == [0.0] * 3
    assert info["trust"].tolist() == [0.0] * len(rows)
    assert info["kept_model"] == f"the histories of all {len(rows)} clients are alike"


def test_one_client_and_rows_of_zeros_are_trusted() -> None:
    updates = torch.tensor([[2.0, -1.0]])
    assert torch.equal(foolsgold().apply(updates, foolsgold().init(3), clients=torch.tensor([1]))[0], updates[0])
    delta, _, info = foolsgold().apply(torch.zeros(3, 2), foolsgold().init(3), clients=torch.arange(3))
    assert delta.tolist() == [0.0, 0.0]
    assert bool((info["trust"] > 0).all())


def test_a_history_that_overflows_gets_no_trust() -> None:
    updates = varied(4, 6, 4).float()
    updates[2] = 3e38
    rule, clients = foolsgold(), torch.arange(4)
    _, state, info = rule.apply(updates, rule.init(4), clients=clients)
    assert bool(torch.isfinite(info["trust"]).all())
    delta, state, info = rule.apply(updates, state, clients=clients)
    assert not bool(torch.isfinite(state.sums[2]).all())
    assert float(info["trust"][2]) == 0.0
    assert bool(torch.isfinite(delta).all()) and float(delta.abs().max()) < 10.0


def test_the_laws_hold_for_other_options() -> None:
    check_aggregator("foolsgold", kappa=0.5, normalise=False)


def test_it_knows_clients_by_their_id() -> None:
    assert build("foolsgold", {}).needs == {"clients"}
    state = Histories(torch.tensor([[0.0, 5.0], [5.0, 0.0], [5.0, 0.0]]))
    updates = torch.tensor([[0.1, 0.1], [0.1, 0.1]])
    twins = foolsgold().apply(updates, state, clients=torch.tensor([2, 1]))[2]
    assert "kept_model" in twins
    different = foolsgold().apply(updates, state, clients=torch.tensor([2, 0]))[2]
    torch.testing.assert_close(different["trust"], torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 0.0}, r"aggregator\.kappa: should be greater than 0"),
        ({"normalise": 1}, r"aggregator\.normalise: should be a valid boolean; 1 was given"),
        ({"kapa": 1.0}, r"aggregator\.kapa: unknown option\. Did you mean 'kappa'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("foolsgold", options)
