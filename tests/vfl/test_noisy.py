"""Noise on the messages of vertical training: what gets it, what does not, and what is said to be spent."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import compression, keys, privacy
from fedopt.compressed import Compressed
from fedopt.compression import feedback
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.registry import ConfigError
from fedopt.strategies import _parties
from fedopt.strategies.egvfl import egvfl
from fedopt.strategies.egvfl_reference import egvfl_reference
from fedopt.strategies.split_learning import split_learning
from fedopt.strategies.vertical_gd import vertical_gd
from fedopt.testing.strategies import play
from fedopt.types import Batches, FedoptError, Named, Strategy
from fedopt.vfl.noisy import SCORES, Messages, Noisy, counted
from tests.vfl.recorded import DOUBLE, Table, record, table

C, Z = 0.02, 0.7


def none() -> Any:
    return compression.build("none", {})


STRATEGIES: dict[str, Strategy] = {
    "egvfl": egvfl(loss="logistic", step=0.3),
    "egvfl power": egvfl(loss="logistic"),
    "egvfl split": egvfl(loss="logistic", form="split", step=0.2),
    "egvfl augmented": egvfl(loss="logistic", form="augmented", step=0.3, output="average"),
    "egvfl_reference": egvfl_reference(none(), loss="logistic", step=0.1, refresh=0.5),
    "egvfl_reference rows": egvfl_reference(none(), loss="logistic", step=0.05, refresh=0.5, rows=0.5, take=2),
    "vertical_gd": vertical_gd(loss="logistic"),
    "split_learning": split_learning(Batches(size=8), loss="logistic"),
    "split_learning top": split_learning(Batches(size=8), loss="logistic", width=3, hidden=4),
}

EVERY = pytest.mark.parametrize("name", STRATEGIES)


def small(name: str = "") -> Table:
    return table(people=20, each=3, width=3 if name == "split_learning top" else 0)


def noise(key: Tensor, *shape: int) -> Tensor:
    return keys.normal(key, *shape, dtype=DOUBLE)


def covered(value: Tensor, key: Tensor, clip: float = C, z: float = Z) -> Tensor:
    """Entry by entry."""
    flat, drawn = value.flatten().tolist(), noise(key, *value.shape).flatten().tolist()
    told = [min(max(v, -clip), clip) + z * clip * g for v, g in zip(flat, drawn, strict=True)]
    return torch.tensor(told, dtype=DOUBLE).reshape(value.shape)


def met(strategy: Strategy, problem: Any, rounds: int = 4) -> list[tuple[Any, Named, Tensor]]:
    """(state, all parties' memory, key) before each exchange of a run without noise."""
    memory, state = (
        ClientMemory(strategy.programs(problem).memory, problem.clients),
        strategy.init(problem, keys.root(0)),
    )
    programs, found = strategy.programs(problem), []
    for number in itertools.count():
        key = keys.fold(keys.root(9), number)
        found.append((state, memory.of(torch.arange(problem.clients)), key))
        if state.round >= rounds:
            return found
        exchange = strategy.plan(problem, state, key)
        replies = Serial().map(problem, programs, exchange, memory.of(exchange.clients), key)
        state, _ = strategy.absorb(problem, state, replies, key)
        memory.commit(replies)
    raise AssertionError


@EVERY
def test_every_vector_that_goes_up_has_its_noise_and_scores_have_none(name: str) -> None:
    strategy, problem = STRATEGIES[name], small(name).problem
    noisy, seen = Noisy(strategy, C, Z), set()
    for state, memory, key in met(strategy, problem):
        exchange = strategy.plan(problem, state, key)._replace(reduce="rows")
        held = {n: rows[exchange.clients] for n, rows in memory.items()}
        plain, told = (Serial().map(problem, s.programs(problem), exchange, held, key) for s in (strategy, noisy))
        seen.add(exchange.program)
        assert plain.vectors.keys() == told.vectors.keys()
        for vector, rows in plain.vectors.items():
            for i, client in enumerate(exchange.clients.tolist()):
                mine = keys.fold(keys.fold(key, "client", client), "noisy", vector)
                wanted = rows[i] if exchange.program.startswith("tell ") else covered(rows[i], mine)
                torch.testing.assert_close(told.vectors[vector][i], wanted, rtol=1e-12, atol=1e-14)
        # the parties themselves go on with what they have
        for n, rows in plain.memory.items():
            assert torch.equal(told.memory[n], rows)
    assert seen - {"tell train"}


@EVERY
@pytest.mark.parametrize("down", [None, 3.0 * C])
def test_vectors_that_go_down_have_their_noise_but_for_the_power_iteration(name: str, down: float | None) -> None:
    strategy, problem = STRATEGIES[name], small(name).problem
    noisy, seen = Noisy(strategy, C, Z, down), set()
    for state, _, key in met(strategy, problem):
        plain, told = strategy.plan(problem, state, key), noisy.plan(problem, state, key)
        assert (plain.program, plain.reduce, plain.batches) == (told.program, told.reduce, told.batches)
        for mine, theirs, rows in ((plain.down, told.down, 0), (plain.own, told.own, 1)):
            assert mine.keys() == theirs.keys()
            for what, value in mine.items():
                if what in ("multipliers", "change", "gradient", "reference"):
                    seen.add(what)
                    wanted = covered(value, keys.fold(keys.fold(key, "noisy"), what), down or C)
                    torch.testing.assert_close(theirs[what], wanted, rtol=1e-12, atol=1e-14)
                    assert value.dim() == rows + 1
                else:
                    assert torch.equal(theirs[what], value), what
    assert (
        seen
        == {
            "egvfl": {"multipliers"},
            "egvfl_reference": {"change", "reference"},
            "vertical_gd": {"gradient"},
            "split_learning": {"gradient"},
        }[name.split()[0]]
    )


@EVERY
def test_what_depends_on_labels_is_what_gets_noise(name: str) -> None:
    """Two runs with other labels: every vector that is told differently has noise, and `u` is none of them."""
    strategy, here = STRATEGIES[name], small(name)
    other = here.problem._replace(
        data=here.problem.data._replace(
            server={"train": here.problem.data.server["train"]._replace(y=1 - here.y.roll(3))}
        )
    )
    one, two = (play(p, strategy, 4).steps for p in (here.problem, other))
    assert len(one) == len(two)
    differ, powers = set(), 0
    for a, b in zip(one, two, strict=True):
        powers += "u" in a.replies.exchange.down
        for said in ("down", "own"):
            x, y = (getattr(s.replies.exchange, said) for s in (a, b))
            differ |= {what for what in x if not torch.equal(x[what], y[what])}
    noisy = {"multipliers", "change", "gradient", "reference"}
    assert differ and differ <= noisy
    assert (powers > 0) == (name in ("egvfl power", "vertical_gd"))


def test_an_adaptive_step_tells_of_labels_without_noise() -> None:
    here = small()
    other = here.problem._replace(
        data=here.problem.data._replace(
            server={"train": here.problem.data.server["train"]._replace(y=1 - here.y.roll(3))}
        )
    )
    steps = [play(p, egvfl(loss="logistic", step=5.0, adaptive=True), 4).state.step for p in (here.problem, other)]
    assert steps[0] != steps[1]


def test_the_noise_is_normal_as_large_as_said_and_new_each_time() -> None:
    problem = table(people=3000, each=1).problem
    recorded = record(problem, Noisy(egvfl(loss="logistic", step=0.3), 0.01, 200.0), 2)
    unit = (
        torch.cat([recorded.sent(i).T for i in range(3)]) / 2.0
    )  # 3 parties, 4 exchanges; what is sent itself is at most 0.01
    told = recorded.told()[:, :, 0] / 2.0
    unit = torch.cat([unit, told])
    assert float(unit.mean(dim=1).abs().max()) < 5 / math.sqrt(3000)
    assert float((unit.square().mean(dim=1) - 1).abs().max()) < 0.15
    assert float((unit**4).mean()) == pytest.approx(3, abs=0.15)
    together = unit @ unit.T / 3000
    assert float((together - torch.diag(together.diag())).abs().max()) < 5 / math.sqrt(3000)


def test_one_label_moves_one_entry_of_what_is_told_by_twice_the_clip_at_the_most() -> None:
    """From the same state and the same answers; with a top network it moves the entries of others too."""
    moved: dict[str, list[int]] = {}
    for name in ("egvfl", "egvfl split", "vertical_gd", "egvfl_reference", "split_learning", "split_learning top"):
        here, strategy = small(name), STRATEGIES[name]
        noisy, most = Noisy(strategy, C, Z), 0.0
        what = {"v": "gradient", "s": "gradient"}.get(name[0], "change" if "ref" in name else "multipliers")
        for j in range(4):
            y = here.y.clone()
            y[j] = 1 - y[j]
            train = here.problem.data.server["train"]._replace(y=y)
            other = here.problem._replace(data=here.problem.data._replace(server={"train": train}))
            told = []
            steps = play(here.problem, strategy, 3).steps
            for problem in (here.problem, other):
                state = strategy.init(problem, keys.fold(keys.root(1), "init"))
                found = []
                for step in steps:  # the answers are those of the first problem
                    key = keys.fold(keys.root(2), step.number)
                    exchange = noisy.plan(problem, state, key)
                    found.append({**exchange.down, **exchange.own}.get(what))
                    state, _ = strategy.absorb(problem, state, step.replies, key)
                told.append([v for v in found if v is not None])
            for a, b in zip(*told, strict=True):
                difference = (a - b).abs()
                most = max(most, float(difference.max()))
                entries = (difference > 0).reshape(-1, 20 if "split_l" not in name else difference.shape[-1])
                moved.setdefault(name, []).append(int(entries.any(dim=0).sum()))
        assert 0 < most <= 2 * C * (1 + 1e-9), name
    for name, counts in moved.items():
        assert max(counts) == 1 or name == "split_learning top", name
    assert max(moved["split_learning top"]) > 1


def test_features_of_one_person_move_the_entries_of_others_through_the_weights() -> None:
    here = small()
    data = here.problem.data
    held = data.splits["train"]
    x = held.x.clone()
    x[7] = 50.0  # a person of the first party
    other = here.problem._replace(data=data._replace(splits={"train": held._replace(x=x)}))
    strategy = Noisy(egvfl(loss="logistic", step=0.3), C, Z)
    one, two = (record(p, strategy, 2).sent(0) for p in (here.problem, other))
    difference = (one - two).abs()
    assert float(difference.max()) <= 2 * C * (1 + 1e-9)
    assert float(difference[7].max()) > C  # so far, or nearly, by the first weights that are not 0
    others = torch.arange(20) != 7
    assert float(difference[others].max()) > 0


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def exact_delta(epsilon: float, sensitivity: float) -> float:
    """Of the Gaussian mechanism with unit noise, exactly (Balle, Wang 2018, theorem 8)."""
    a, b = sensitivity / 2, epsilon / sensitivity
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)


@pytest.mark.parametrize(("z", "messages", "entries"), [(4.0, 10, 1), (20.0, 60, 3), (1.5, 1, 1), (30.0, 10, 50)])
def test_what_is_spent_bounds_the_gaussian_mechanism_closely(z: float, messages: int, entries: int) -> None:
    pytest.importorskip("dp_accounting")
    noisy = Noisy(STRATEGIES["egvfl"], C, z)
    found = noisy.spent(messages, 1e-4, entries)
    apart = math.sqrt(messages * entries) * 2 * C / (z * C)
    assert exact_delta(found, apart) <= 1e-4 < exact_delta(0.75 * found, apart)


def test_what_is_spent_grows_with_messages_and_entries_and_shrinks_with_noise() -> None:
    pytest.importorskip("dp_accounting")
    inner = STRATEGIES["egvfl"]
    assert Noisy(inner, C, 2.0).spent(0, 1e-4) == 0
    assert Noisy(inner, C, 2.0).spent(5, 1e-4) == privacy.epsilon(2.0, 5, 1e-4) == Noisy(inner, 9.0, 2.0).spent(5, 1e-4)
    by_messages = [Noisy(inner, C, 3.0).spent(n, 1e-4) for n in (1, 2, 10, 100)]
    by_entries = [Noisy(inner, C, 3.0).spent(3, 1e-4, e) for e in (1, 2, 10, 100)]
    by_noise = [Noisy(inner, C, z).spent(3, 1e-4) for z in (8.0, 4.0, 1.0, 0.5)]
    for found in (by_messages, by_entries, by_noise):
        assert found == sorted(set(found))
    # four messages are as much as two entries at half the noise
    assert Noisy(inner, C, 3.0).spent(4, 1e-4) == pytest.approx(Noisy(inner, C, 1.5).spent(1, 1e-4), rel=1e-6)


def test_messages_are_counted_by_exchange() -> None:
    wanted = {
        "egvfl": {"tell train": (0, 0), "look": (1, 1), "move": (1, 1)},
        "egvfl power": {"tell train": (0, 0), "power": (1, 0), "look": (1, 1), "move": (1, 1)},
        "egvfl split": {"tell train": (0, 0), "look": (1, 3), "move": (1, 3)},
        "vertical_gd": {"tell train": (0, 0), "power": (1, 0), "move": (1, 1)},
        "split_learning": {"train": (1, 1)},
        "egvfl_reference": {"sync": (1, 0), "step": (1, 1), "toldstep": (1, 2), "moving": (2, 1), "toldmoving": (2, 2)},
    }
    for name, each in wanted.items():
        seen = set()
        for reply in record(small().problem, Noisy(STRATEGIES[name], C, Z), 12).replies:
            program = reply.exchange.program
            seen.add(program)
            assert counted(reply) == Messages(*each[program]), (name, program)
        assert seen == set(each), name


def test_what_a_strategy_offers_is_passed_on_and_nothing_else() -> None:
    problem = small("split_learning top").problem
    top = Noisy(STRATEGIES["split_learning top"], C, Z)
    state = top.init(problem, keys.root(0))
    z = noise(keys.root(3), 20, 3)
    assert torch.equal(top.predicted(problem, state, z), STRATEGIES["split_learning top"].predicted(problem, state, z))
    assert not hasattr(top, "lengths")
    assert Noisy(STRATEGIES["vertical_gd"], C, Z).lengths(small().problem) == {"moved": 20}
    assert not hasattr(Noisy(STRATEGIES["egvfl"], C, Z), "predicted")
    plain = Noisy(STRATEGIES["egvfl"], C, Z)
    assert copy.deepcopy(plain) == plain == pickle.loads(pickle.dumps(plain))
    assert plain.model(problem, plain.init(problem, keys.root(0))) is None
    assert f"{_parties.TELL} " == SCORES


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "split_learning top"])
def test_the_stacked_executor_tells_the_same(name: str) -> None:
    problem, noisy = small(name).problem, Noisy(STRATEGIES[name], C, Z)
    executor = Stacked()
    one, two = play(problem, noisy, 3), play(problem, noisy, 3, executor=executor)
    assert not executor.refused
    for a, b in zip(one.steps, two.steps, strict=True):
        for vector, rows in a.replies.vectors.items():
            torch.testing.assert_close(rows, b.replies.vectors[vector], rtol=1e-9, atol=1e-11)


def test_little_noise_changes_little_and_much_noise_much() -> None:
    here = table()
    truth = record(here.problem, STRATEGIES["egvfl"], 20).weights
    apart = []
    for z in (1e-6, 1e-2, 1.0):
        found = record(here.problem, Noisy(STRATEGIES["egvfl"], 5.0, z), 20).weights
        apart.append(float((found - truth).norm() / truth.norm()))
    assert apart[0] < 1e-4 < apart[1] < apart[2]


def test_noise_is_compressed_and_not_the_other_way_round() -> None:
    problem = small().problem
    codec, memory = compression.build("randk", {"share": 0.5}), feedback.build("none", {})
    inner = vertical_gd(loss="logistic", step=0.5)
    outer = Compressed(Noisy(inner, C, Z), codec, memory, ("moved",))
    rows = [r.vectors["moved"] for r in record(problem, outer, 3).replies if "moved" in r.vectors]
    assert all(int((row != 0).sum()) == 10 for moved in rows for row in moved)
    with pytest.raises(FedoptError, match="noise has to be added before a message is compressed"):
        Noisy(Compressed(inner, codec, memory, ("moved",)), C, Z).programs(problem)
    down = Noisy(vertical_gd(compression.build("randk", {"share": 0.5}), loss="logistic", step=0.5), C, Z)
    with pytest.raises(ConfigError, match=r"compression\.down: 'gradient' is compressed by 'randk' before noise"):
        play(problem, down, 2)


def test_what_is_not_finite_is_rejected_by_name() -> None:
    here = small()
    held = here.problem.data.splits["train"]
    for bad in (math.nan, math.inf):
        x = held.x.clone()
        x[25, 0] = bad
        problem = here.problem._replace(data=here.problem.data._replace(splits={"train": held._replace(x=x)}))
        strategy = Noisy(vertical_gd(loss="logistic", step=0.5), C, Z)
        with pytest.raises(FedoptError, match=r"client 1 \(\d+ of \d+ entries of its (outputs|moved) are NaN or Inf\)"):
            play(problem, strategy, 3)


def test_an_entry_that_is_not_finite_stays_so() -> None:
    entries = torch.tensor([math.inf, -math.inf, math.nan, 5.0], dtype=DOUBLE)
    told = Noisy(STRATEGIES["egvfl"], C, Z)._covered(entries, keys.root(0), C)
    torch.testing.assert_close(told[:3], entries[:3], equal_nan=True)
    torch.testing.assert_close(told[3:], covered(entries, keys.root(0))[3:])


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_and_noise_are_needed(value: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.clip: a number above 0 is needed"):
        Noisy(STRATEGIES["egvfl"], value, 1.0)
    with pytest.raises(ConfigError, match=r"privacy\.noise_multiplier: a number above 0 is needed"):
        Noisy(STRATEGIES["egvfl"], 1.0, value)
    with pytest.raises(ConfigError, match=r"privacy\.down: a number above 0 is needed"):
        Noisy(STRATEGIES["egvfl"], 1.0, 1.0, value)
