"""Clipping and noise against loops, what one client can change, the quantile, and epsilon against its definition."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt import aggregators, keys, privacy, strategies
from fedopt.aggregators import lift, pre
from fedopt.aggregators.mean import mean
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.privacy import Adaptive, Private
from fedopt.registry import ConfigError, declare, facts
from fedopt.testing._laws import same
from fedopt.testing.strategies import compose, small_federation, small_problem
from fedopt.types import Rejection, Replies, Rule

DOUBLE = torch.float64


def private(z: float = 1.0, clip: float = 1.0, adaptive: Adaptive | None = None, rule: Rule | None = None) -> Rule:
    return privacy.private(rule or lift(mean, {}), noise_multiplier=z, clip=clip, spent=float, adaptive=adaptive)


def released(
    rule: Rule, rows: Tensor, asked: int | None = None, key: int = 0, state: Private | None = None, **offers: Any
) -> tuple[Tensor, Private, dict[str, Any]]:
    n = rows.shape[0]
    offers = {"weights": torch.ones(n), "clients": torch.arange(n), **offers}
    asked = n if asked is None else asked
    found: Any = rule.apply(rows, rule.init(n) if state is None else state, asked=asked, key=keys.root(key), **offers)
    return found


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for number in range(100):
        n, d, rejected = draw.randint(1, 40), draw.randint(1, 5), draw.randint(0, 3)
        clip, z = draw.uniform(0.1, 4.0), draw.uniform(0.01, 2.0)
        rows = [[draw.gauss(0, 2) for _ in range(d)] for _ in range(n)]
        noise = keys.normal(keys.fold(keys.root(number), "noise"), d, dtype=DOUBLE).tolist()
        wanted, clipped = [z * clip * noise[j] for j in range(d)], 0
        for row in rows:
            norm = math.sqrt(sum(x * x for x in row))
            clipped += norm > clip
            for j in range(d):
                wanted[j] += row[j] * min(1.0, clip / norm)
        wanted = [x / (n + rejected) for x in wanted]
        weights = torch.tensor([draw.uniform(0, 9) for _ in range(n)])
        got, state, info = released(
            private(z, clip), torch.tensor(rows, dtype=DOUBLE), n + rejected, number, weights=weights
        )
        torch.testing.assert_close(got, torch.tensor(wanted, dtype=DOUBLE), rtol=1e-11, atol=1e-12)
        assert state == Private((), clip, 1)
        assert info == {
            "clip": clip,
            "clipped_share": clipped / n,
            "noise_std": pytest.approx(z * clip / (n + rejected)),
            "epsilon": 1.0,
        }


def test_the_noise_is_normal_and_as_large_as_said() -> None:
    d = 200_000
    delta, _, info = released(private(1.5, 0.5), torch.zeros(4, d, dtype=DOUBLE), asked=5)
    unit = delta * 5 / (1.5 * 0.5)
    assert info["noise_std"] == pytest.approx(0.15)
    assert abs(float(unit.mean())) < 5 / math.sqrt(d)
    assert float(unit.square().mean()) == pytest.approx(1, abs=0.02)
    assert float((unit**4).mean()) == pytest.approx(3, abs=0.15)
    other, _, _ = released(private(1.5, 0.5), torch.zeros(4, d, dtype=DOUBLE), asked=5, key=1)
    assert abs(float((other * delta).mean())) < 0.01 * float(delta.square().mean())


def test_one_client_moves_the_sum_by_twice_the_norm_at_the_most() -> None:
    draw = random.Random(1)
    most = 0.0
    for number in range(100):
        n, d, clip = draw.randint(1, 20), draw.randint(1, 6), draw.uniform(0.1, 3)
        rows = keys.normal(keys.fold(keys.root(number), "rows"), n, d, dtype=DOUBLE)
        rule, i = private(1.0, clip), draw.randrange(n)
        replaced = rows.clone()
        size = draw.choice([0.0, 0.1, 1.0, 1e3, 1e200])
        replaced[i] = -size * rows[i] if draw.random() < 0.5 else size * keys.normal(keys.root(number), d, dtype=DOUBLE)
        before, after = (released(rule, x)[0] * n for x in (rows, replaced))
        moved = float((after - before).norm()) / clip
        assert moved <= 2 + 1e-9
        most = max(most, moved)
        # a rejected answer takes away no more than the norm, and changes nothing else
        kept = torch.arange(n) != i
        without = released(rule, rows[kept], asked=n)[0] * n
        torch.testing.assert_close(
            before - without, rows[i] * min(1.0, clip / float(rows[i].norm())), rtol=1e-6, atol=1e-9
        )
    assert most > 1.9


def test_a_very_long_row_is_cut_to_the_norm() -> None:
    rows = torch.full((1, 100_000), 3e38)
    delta, _, info = released(private(1e-9), rows)
    assert float(delta.to(DOUBLE).norm()) == pytest.approx(1, rel=1e-6)
    assert info["clipped_share"] == 1


def test_a_round_in_which_all_answers_were_rejected_is_noise() -> None:
    rule = private(2.0, 3.0)
    delta, state, info = released(rule, torch.zeros(0, 4, dtype=DOUBLE), asked=8, key=5)
    noise = keys.normal(keys.fold(keys.root(5), "noise"), 4, dtype=DOUBLE)
    torch.testing.assert_close(delta, noise * (2.0 * 3.0 / 8))
    assert (rule.admits(0), state.rounds, info["clipped_share"]) == (None, 1, 0.0)


def answered(strategy: Any, problem: Any) -> tuple[Any, Replies, Tensor]:
    key = keys.root(3)
    programs = strategy.programs(problem)
    state = strategy.init(problem, key)
    exchange = strategy.plan(problem, state, key)
    memory = ClientMemory(programs.memory, problem.clients)
    return state, Serial().map(problem, programs, exchange, memory.of(exchange.clients), key), key


def test_the_server_is_told_of_a_round_without_answers() -> None:
    problem = small_problem(small_federation())
    strategy = compose("fedavg", aggregator=private())
    state, replies, key = answered(strategy, problem)
    nobody = replies._replace(
        clients=replies.clients[:0],
        vectors={"delta": replies.vectors["delta"][:0]},
        weights=replies.weights[:0],
        metrics={},
        memory={},
        rejected=tuple(Rejection(int(c), "NaN") for c in replies.clients),
    )
    after, info = strategy.absorb(problem, state, nobody, key)
    assert "kept_model" not in info and after.rule.rounds == 1
    assert not torch.equal(after.model["params"], state.model["params"])
    # without privacy, such a round keeps the model
    plain = compose("fedavg")
    kept, info = plain.absorb(problem, plain.init(problem, key), nobody, key)
    assert info == {"kept_model": "no answer was accepted"}
    assert torch.equal(kept.model["params"], state.model["params"])


def learns_more(name: str) -> bool:
    """Whether the server's state depends on anything of the answers but the rows that its rule sees."""
    problem = small_problem(small_federation())
    strategy = compose(name, aggregator=private())
    state, replies, key = answered(strategy, problem)
    other = replies._replace(
        vectors={name: rows if name == "delta" else rows + 1 for name, rows in replies.vectors.items()},
        weights=3 * replies.weights + torch.arange(replies.weights.numel()),
        metrics={name: value + 1 for name, value in replies.metrics.items()},
        memory={name: value + 1 for name, value in replies.memory.items()},
    )
    one, two = (strategy.absorb(problem, state, answers, key)[0] for answers in (replies, other))
    try:
        same(one, two, "the state")
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    "name", [n for n in strategies.registry.names() if facts(strategies.registry.get(n)).get("private")]
)
def test_a_strategy_that_says_so_learns_by_its_rule_alone(name: str) -> None:
    assert not learns_more(name)


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_strategies_that_learn_more_do_not_say_so(name: str) -> None:
    assert learns_more(name)
    assert not facts(strategies.registry.get(name)).get("private")


@declare(scope="linear")
@dataclass(frozen=True)
class heavy_ball:
    beta: float = 0.5

    def init(self, n: int) -> Tensor:
        return torch.zeros((), dtype=DOUBLE)

    def apply(
        self, updates: Tensor, state: Tensor, *, weights: Tensor, key: Tensor, clients: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        assert clients is None
        state = self.beta * state + mean(updates, weights=weights)
        return state, state, {"weight": float(weights.sum()), "rows": updates.shape[0]}


def test_the_rule_sees_one_row_and_keeps_its_state() -> None:
    rule, alone = private(rule=lift(heavy_ball, {})), private()
    rows = keys.normal(keys.root(0), 6, 3, dtype=DOUBLE)
    first, state, info = released(rule, rows)
    second, state, _ = released(rule, rows, key=1, state=state)
    a, b = (released(alone, rows, key=key)[0] for key in (0, 1))
    torch.testing.assert_close(first, a)
    torch.testing.assert_close(second, 0.5 * a + b)
    assert (info["weight"], info["rows"], state.rounds) == (6, 1, 2)


@declare(scope="linear")
def by_name(updates: Tensor, *, weights: Tensor, clients: Tensor) -> Tensor:
    return updates[0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda: aggregators.build("krum", {"f": 1}), "'krum' is no linear rule"),
        (lambda: aggregators.build("median", {}), "'median' is no linear rule"),
        (
            lambda: pre.composed(lift(mean, {}), [pre.lift(halved, {})]),
            r"'halved \+ mean' is no linear rule",
        ),
        (lambda: lift(by_name, {}), "'by_name' asks whose each row is"),
    ],
)
def test_a_rule_without_a_bound_is_refused(rule: Callable[[], Rule], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        private(rule=rule())
    assert refused.value.where == "aggregator.name"


def halved(updates: Tensor) -> Tensor:
    return updates / 2


# adaptive clipping


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("first", [0.01, 50.0])
def test_the_norm_goes_to_the_quantile(quantile: float, first: float) -> None:
    n = 400
    norms = torch.exp(keys.normal(keys.root(1), n, dtype=DOUBLE))
    rows = torch.stack([norms, torch.zeros(n, dtype=DOUBLE)], dim=1)
    rule = private(1.0, first, Adaptive(quantile, 0.2, n / 20))
    state, seen = rule.init(n), []
    for round in range(250):
        _, state, _ = released(rule, rows, key=round, state=state)
        seen.append(state.clip)
    settled = sum(seen[150:]) / 100
    assert float((norms <= settled).to(DOUBLE).mean()) == pytest.approx(quantile, abs=0.04)


def test_one_step_of_the_norm_by_hand() -> None:
    # norms 1, 2, 3, 4 against 2.5; of five who were asked, one was rejected and stands for the quantile
    rows = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE))
    _, state, info = released(private(1e-9, 2.5, Adaptive(0.75, 0.2, 1e-8)), rows, asked=5)
    assert info["clip"] == 2.5 and info["clipped_share"] == 0.5
    assert state.clip == pytest.approx(2.5 * math.exp(-0.2 * ((2 + 0.75) / 5 - 0.75)), rel=1e-6)
    _, state, _ = released(private(1e-9, 2.5, Adaptive(0.75, 0.2, 1e-8)), rows[:0], asked=5)
    assert state.clip == pytest.approx(2.5, rel=1e-6)


def test_the_count_is_noisy() -> None:
    rows, sigma = torch.ones(10, 2, dtype=DOUBLE), 3.0
    rule = private(1.0, 1.0, Adaptive(0.5, 1.0, sigma))
    steps = [math.log(released(rule, rows, key=key)[1].clip) for key in range(2000)]
    spread = np.std(steps)
    assert spread == pytest.approx(sigma / 10, rel=0.06)
    assert np.mean(steps) == pytest.approx(0.5, abs=5 * sigma / 10 / math.sqrt(2000))  # nobody within: 0 - γ


def test_rows_and_counts_share_the_noise_multiplier() -> None:
    z, sigma = 1.2, 0.9
    _, _, info = released(private(z, 2.0, Adaptive(0.5, 0.2, sigma)), torch.zeros(10, 2, dtype=DOUBLE))
    for_rows = info["noise_std"] * 10 / 2.0
    assert for_rows > z
    # neighbours differ by 2C in the sum and by 1 in the count; together they are as far apart as 2 / z
    assert math.hypot(2 / for_rows, 1 / sigma) == pytest.approx(2 / z)
    with pytest.raises(ConfigError, match=r"privacy\.adaptive\.count_noise: more than half of the noise multiplier"):
        private(z, 2.0, Adaptive(0.5, 0.2, z / 2))


# epsilon


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def exact_delta(epsilon: float, sensitivity: float) -> float:
    """Of the Gaussian mechanism with unit noise, exactly (Balle, Wang 2018, theorem 8)."""
    a, b = sensitivity / 2, epsilon / sensitivity
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)


ORDERS = [*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024]


@pytest.mark.parametrize(
    ("z", "rounds", "delta"), [(4.0, 10, 1e-3), (1.0, 1, 1e-5), (12.0, 300, 1e-4), (0.5, 20, 0.05)]
)
def test_epsilon_of_everybody_by_hand(z: float, rounds: int, delta: float) -> None:
    pytest.importorskip("dp_accounting")
    # the sum moves by 2C, the noise is z C: of order a, a round's divergence is a (2C)² / (2 (z C)²)
    each = [rounds * a * 2 / z**2 + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in ORDERS]
    found = privacy.epsilon(z, rounds, delta)
    assert found == pytest.approx(min(each), rel=1e-9)
    # no less than the exact figure, and not much more
    sensitivity = 2 * math.sqrt(rounds) / z
    assert exact_delta(found, sensitivity) <= delta <= exact_delta(0.7 * found, sensitivity)
    # what would be said if a replaced client moved the sum by C alone is not true
    assert exact_delta(privacy.epsilon(2 * z, rounds, delta), sensitivity) > delta


def test_epsilon_of_a_cohort_is_the_call_of_the_library() -> None:
    library = pytest.importorskip("dp_accounting")
    z, rounds, delta, clients, cohort = 3.0, 50, 1e-4, 1000, 20
    gaussian = library.GaussianDpEvent(z / 2)  # the accountant takes noise over sensitivity, which is 2C
    drawn = library.SampledWithoutReplacementDpEvent(clients, cohort, gaussian)
    accountant = library.rdp.RdpAccountant(neighboring_relation=library.NeighboringRelation.REPLACE_ONE)
    wanted = accountant.compose(drawn, rounds).get_epsilon(delta)
    assert privacy.epsilon(z, rounds, delta, (clients, cohort)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("clients", "cohort"), [(100, 5), (10, 5), (10, 9)])
@pytest.mark.parametrize("z", [0.5, 1.0, 3.0])
def test_epsilon_of_one_round_is_no_less_than_an_attack_shows(clients: int, cohort: int, z: float) -> None:
    """All others send zeros; the one who is replaced sends +C, then -C, and is in the cohort with probability q."""
    pytest.importorskip("dp_accounting")
    x, step = np.linspace(-60, 60, 600_001, retstep=True)
    q = cohort / clients

    def density(at: float) -> Any:
        def normal(centre: float) -> Any:
            return np.exp(-((x - centre) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))

        return (1 - q) * normal(0.0) + q * normal(at)

    one, other = density(1.0), density(-1.0)
    for delta in (1e-2, 1e-4):
        found = privacy.epsilon(z, 1, delta, (clients, cohort))
        assert float(np.maximum(one - math.exp(found) * other, 0).sum() * step) <= delta


def test_epsilon_grows_with_rounds_and_shrinks_with_noise_and_with_the_share() -> None:
    pytest.importorskip("dp_accounting")
    for sample in (None, (200, 10)):
        by_rounds = [privacy.epsilon(2.0, rounds, 1e-3, sample) for rounds in (0, 1, 2, 10, 100, 1000)]
        assert by_rounds[0] == 0 and by_rounds == sorted(set(by_rounds))
        by_noise = [privacy.epsilon(z, 20, 1e-3, sample) for z in (0.5, 1.0, 2.0, 4.0, 16.0)]
        assert by_noise == sorted(set(by_noise), reverse=True)
    by_share = [privacy.epsilon(2.0, 20, 1e-3, (200, m)) for m in (2, 10, 50, 150, 199)]
    assert by_share == sorted(by_share)
    assert by_share[0] < by_share[-1] <= privacy.epsilon(2.0, 20, 1e-3)


@pytest.mark.parametrize("sample", [None, (100, 10)])
@pytest.mark.parametrize("target", [0.5, 8.0, 200.0])
def test_the_noise_for_a_budget(sample: tuple[int, int] | None, target: float) -> None:
    pytest.importorskip("dp_accounting")
    z = privacy.calibrated(target, 30, 1e-3, sample)
    assert privacy.epsilon(z, 30, 1e-3, sample) <= target < privacy.epsilon(z * (1 - 1e-4), 30, 1e-3, sample)


def test_the_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"privacy: .*dp-accounting.*pip install 'fedopt\[privacy\]'"):
        privacy.epsilon(1.0, 1, 1e-3)
