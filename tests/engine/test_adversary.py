"""Who attacks, what an attack sees, and what the server gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import attacks, keys
from fedopt.data import Dataset, federate
from fedopt.engine.adversary import Adversary, Group, Moment, Schedule
from fedopt.engine.collect import gather, merge
from fedopt.types import Attack, Batches, Exchange, Replies, Uplink

HERE = Moment(keys.root(0), keys.root(1), 0)
ROWS = torch.arange(12.0).reshape(4, 3) + 1.0


def execute(exchange: Exchange) -> Replies:
    n = exchange.clients.numel()
    up = Uplink(
        {"delta": ROWS[:n].clone(), "control": -ROWS[:n], "buffers": torch.ones(n, 2)},
        {"loss": torch.ones(n)},
        {},
        torch.arange(1.0, n + 1.0),
    )
    return merge(exchange, [gather(exchange, [(0, torch.arange(n), up)])])


def spy(knowledge: str, seen: list[Tensor]) -> Attack:
    def vectors(rows: Tensor, b: int, *, n: int, **offers: Any) -> Tensor:
        seen.append(rows.clone())
        return torch.full((b, rows.shape[1]), 100.0 * n)

    return Attack("spy", knowledge, vectors, None)  # type: ignore[arg-type]


def exchange(reduce: str = "rows") -> Exchange:
    return Exchange("train", torch.tensor([2, 3, 5, 8]), {}, reduce=reduce)  # type: ignore[arg-type]


@pytest.mark.parametrize(("knowledge", "rows"), [("own", [1, 3]), ("colluders", [1, 3]), ("omniscient", [0, 2])])
def test_what_an_attack_sees_and_changes(knowledge: str, rows: list[int]) -> None:
    seen: list[Tensor] = []
    adversary = Adversary((Group(spy(knowledge, seen), torch.tensor([3, 8, 11])),))
    replies = adversary.attacked(execute, exchange(), HERE)
    assert torch.equal(seen[0], ROWS[rows])
    assert torch.equal(seen[1], -ROWS[rows])  # control variates have the length of the model, too
    assert torch.equal(replies.vectors["delta"][[0, 2]], ROWS[[0, 2]])
    assert bool((replies.vectors["delta"][[1, 3]] == 400.0).all())
    assert torch.equal(replies.vectors["buffers"], torch.ones(4, 2))


def test_the_mean_is_formed_after_the_attack() -> None:
    adversary = Adversary((Group(spy("own", []), torch.tensor([8])),))
    replies = adversary.attacked(execute, exchange("mean"), HERE)
    wanted = (1 * ROWS[0] + 2 * ROWS[1] + 3 * ROWS[2] + 4 * 400.0) / 10
    torch.testing.assert_close(replies.vectors["delta"], wanted[None])
    assert replies.exchange.reduce == "mean" and replies.weights.tolist() == [10.0]


def test_no_attacker_in_the_cohort_changes_nothing() -> None:
    adversary = Adversary((Group(spy("omniscient", []), torch.tensor([0, 1])),))
    for reduce in ("rows", "mean"):
        attacked = adversary.attacked(execute, exchange(reduce), HERE)
        plain = execute(exchange(reduce))
        torch.testing.assert_close(attacked.vectors["delta"], plain.vectors["delta"])


def test_an_attack_that_sends_nan_is_rejected_by_name() -> None:
    attack = Attack("nan", "own", lambda rows, b, **offers: rows * float("nan"), None)
    adversary = Adversary((Group(attack, torch.tensor([5])),))
    replies = adversary.attacked(execute, exchange(), HERE)
    assert replies.clients.tolist() == [2, 3, 8]
    assert [(r.client, "delta" in r.reason) for r in replies.rejected] == [(5, True)]


def test_two_attacks_at_once() -> None:
    flip = attacks.build("sign_flip", {})
    scaled = attacks.build("sign_flip", {"scale": 10.0})
    adversary = Adversary((Group(flip, torch.tensor([2])), Group(scaled, torch.tensor([8]))))
    delta = adversary.attacked(execute, exchange(), HERE).vectors["delta"]
    torch.testing.assert_close(delta, torch.stack([-ROWS[0], ROWS[1], ROWS[2], -10 * ROWS[3]]))


def test_label_attacks_poison_the_attackers_training_labels_alone() -> None:
    torch.manual_seed(0)
    dataset = Dataset(torch.randn(90, 2), torch.randint(3, (90,)), ("a", "b", "c"))
    clean = federate(dataset, clients=6, valid_share=0.2, key=keys.root(1))
    adversary = Adversary((Group(attacks.build("label_flip", {"mode": "cyclic"}), torch.tensor([1, 4])),))
    dirty = adversary.poison(clean, keys.root(2))
    train, offsets = dirty.splits["train"], clean.splits["train"].offsets
    for client in range(6):
        part = slice(int(offsets[client]), int(offsets[client + 1]))
        honest = clean.splits["train"].y[part]
        assert torch.equal(train.y[part], (honest + 1) % 3 if client in (1, 4) else honest)
    assert torch.equal(dirty.splits["valid"].y, clean.splits["valid"].y)
    assert torch.equal(dirty.server["test"].y, clean.server["test"].y)


def recorder(seen: list[dict[str, Any]], knowledge: str = "own") -> Attack:
    def vectors(rows: Tensor, b: int, **offers: Any) -> Tensor:
        seen.append(offers)
        return torch.zeros(b, rows.shape[1])

    return Attack("recorder", knowledge, vectors, None)  # type: ignore[arg-type]


def test_what_is_on_offer() -> None:
    seen: list[dict[str, Any]] = []
    asked = exchange()._replace(down={"params": torch.ones(3)})

    def moved(replies: Replies) -> Tensor:
        return replies.vectors["delta"].sum(dim=0)

    adversary = Adversary((Group(recorder(seen, "omniscient"), torch.tensor([3, 8])),), fresh=lambda key: torch.ones(3))
    adversary.attacked(execute, asked, HERE._replace(round=7, moved=moved))
    offers = seen[0]
    assert offers["round"] == 7 and offers["n"] == 4
    assert torch.equal(offers["own"], ROWS[[1, 3]]) and torch.equal(offers["model"], torch.ones(3))
    sent = torch.full((2, 3), 5.0)
    torch.testing.assert_close(offers["outcome"](sent), ROWS[0] + ROWS[2] + 10.0)
    assert not torch.equal(seen[0]["key"], seen[1]["key"]), "another key for each vector"


def test_outcome_has_the_form_that_the_strategy_asked_for() -> None:
    seen: list[dict[str, Any]] = []
    adversary = Adversary((Group(recorder(seen, "omniscient"), torch.tensor([8])),))
    adversary.attacked(execute, exchange("mean"), HERE._replace(moved=lambda replies: replies.vectors["delta"][0]))
    wanted = (1 * ROWS[0] + 2 * ROWS[1] + 3 * ROWS[2] + 4 * 100.0) / 10
    torch.testing.assert_close(seen[0]["outcome"](torch.full((1, 3), 100.0)), wanted)


def test_only_omniscient_attacks_are_told_the_outcome() -> None:
    seen: list[dict[str, Any]] = []
    adversary = Adversary((Group(recorder(seen, "colluders"), torch.tensor([8])),))
    adversary.attacked(execute, exchange(), HERE._replace(moved=lambda replies: torch.zeros(3)))
    assert seen[0]["outcome"] is None


def attacked_rounds(schedule: Schedule, rounds: int = 400) -> Tensor:
    """Which of the clients 3 and 8 attack in each round `[rounds, 2]`."""
    adversary = Adversary((Group(attacks.build("sign_flip", {}), torch.tensor([3, 8]), schedule),))
    found = torch.zeros(rounds, 2, dtype=torch.bool)
    for number in range(rounds):
        delta = adversary.attacked(execute, exchange(), HERE._replace(round=number)).vectors["delta"]
        found[number] = (delta != ROWS).any(dim=1)[[1, 3]]
    return found


def test_a_sleeper_wakes_and_falls_asleep_again() -> None:
    found = attacked_rounds(Schedule(first=3, last=5), 10)
    assert found[:, 0].tolist() == [False] * 3 + [True] * 3 + [False] * 4
    assert torch.equal(found[:, 0], found[:, 1])


def test_random_rounds_are_the_same_for_all_and_random_clients_are_not() -> None:
    rounds = attacked_rounds(Schedule(rounds=0.3))
    assert torch.equal(rounds[:, 0], rounds[:, 1])
    assert 0.2 < float(rounds[:, 0].double().mean()) < 0.4
    clients = attacked_rounds(Schedule(clients=0.5))
    assert not torch.equal(clients[:, 0], clients[:, 1])
    assert 0.4 < float(clients.double().mean()) < 0.6
    both = attacked_rounds(Schedule(rounds=0.5, clients=0.5))
    assert 0.18 < float(both.double().mean()) < 0.32
    assert torch.equal(both, attacked_rounds(Schedule(rounds=0.5, clients=0.5)))


def test_data_that_is_altered_in_some_rounds_lies_beside_the_honest_data() -> None:
    """The attackers walk over it in those rounds, all others and all other rounds over the honest split."""
    dataset = Dataset(torch.randn(90, 2), torch.randint(3, (90,)), ("a", "b", "c"))
    clean = federate(dataset, clients=9, key=keys.root(1))
    flip = attacks.build("label_flip", {"mode": "cyclic"})
    adversary = Adversary((Group(flip, torch.tensor([3, 8]), Schedule(first=1)),))
    dirty = adversary.poison(clean, keys.root(2))
    assert torch.equal(dirty.splits["train"].y, clean.splits["train"].y)
    name = next(name for name in dirty.splits if name not in clean.splits)
    assert not torch.equal(dirty.splits[name].y, clean.splits["train"].y)
    walks: list[tuple[str, list[int], list[float]]] = []

    def run(asked: Exchange) -> Replies:
        assert asked.batches is not None
        walks.append((asked.batches.split, asked.clients.tolist(), asked.own["mark"].tolist()))
        n = asked.clients.numel()
        up = Uplink({"delta": asked.own["mark"][:, None].expand(n, 3)}, {"loss": torch.ones(n)}, {}, torch.ones(n))
        return merge(asked, [gather(asked, [(0, torch.arange(n), up)])])

    asked = exchange("mean")._replace(batches=Batches(size=4), own={"mark": torch.tensor([2.0, 3.0, 5.0, 8.0])})
    adversary.attacked(run, asked, HERE)
    assert walks == [("train", [2, 3, 5, 8], [2.0, 3.0, 5.0, 8.0])]
    replies = adversary.attacked(run, asked, HERE._replace(round=1))
    assert walks[1:] == [(name, [3, 8], [3.0, 8.0]), ("train", [2, 5], [2.0, 5.0])]
    assert replies.clients.tolist() == [2, 3, 5, 8] and replies.exchange.reduce == "mean"
    torch.testing.assert_close(replies.vectors["delta"], torch.full((1, 3), 4.5))


def test_the_same_clients_attack_data_and_vectors() -> None:
    seen: list[dict[str, Any]] = []
    both = torch.tensor([3, 8])
    flip = Group(attacks.build("label_flip", {}), both)
    adversary = Adversary((flip, Group(recorder(seen), both)))
    assert adversary.clients.tolist() == [3, 8]
    adversary.attacked(execute, exchange(), HERE)
    assert len(seen) == 2


def test_samples_are_altered_beside_the_source() -> None:
    dataset = Dataset(torch.randn(90, 1, 4, 4), torch.randint(3, (90,)), ("a", "b", "c"))
    clean = federate(dataset, clients=6, key=keys.root(1))
    calls: list[tuple[int, int]] = []

    def stamp(x: Tensor, y: Tensor, *, classes: int, key: Tensor, i: int, b: int) -> tuple[Tensor, Tensor]:
        calls.append((i, b))
        return torch.full_like(x, float(i)), torch.zeros_like(y)

    adversary = Adversary((Group(Attack("stamp", "samples", None, None, stamp), torch.tensor([1, 4])),))
    dirty = adversary.poison(clean, keys.root(2)).splits["train"]
    before = clean.splits["train"]
    assert calls == [(0, 2), (1, 2)]
    for client in range(6):
        own = slice(int(before.offsets[client]), int(before.offsets[client + 1]))
        x, honest = dirty.x[dirty.index[own]], before.x[before.index[own]]
        if client in (1, 4):
            assert bool((x == (0.0 if client == 1 else 1.0)).all()) and not dirty.y[own].any()
        else:
            assert torch.equal(x, honest) and torch.equal(dirty.y[own], before.y[own])
    assert torch.equal(dirty.x[: before.x.shape[0]], before.x)


def work(done: list[tuple[list[int], int | None]]) -> Any:
    """`execute`, which notes who works and for how many steps."""

    def run(asked: Exchange) -> Replies:
        assert asked.batches is not None
        done.append((asked.clients.tolist(), asked.batches.steps))
        return execute(asked)

    return run


@pytest.mark.parametrize(
    ("name", "options", "idle"),
    [
        ("ipm", {}, True), ("zero", {}, True), ("infinite", {}, True), ("mimic", {}, True),
        ("sign_flip", {}, False), ("sybil", {}, False),
    ],
)  # fmt: skip
def test_attackers_whose_work_nobody_looks_at_take_no_step(name: str, options: dict[str, Any], idle: bool) -> None:
    done: list[tuple[list[int], int | None]] = []
    adversary = Adversary((Group(attacks.build(name, options), torch.tensor([3, 8])),))
    asked = exchange()._replace(batches=Batches(size=4, epochs=2), down={"params": torch.zeros(3)})
    adversary.attacked(work(done), asked, HERE._replace(still=work(done)))
    assert done == ([([3, 8], 0), ([2, 5], None)] if idle else [([2, 3, 5, 8], None)])
    done.clear()
    adversary.attacked(work(done), asked, HERE)
    assert done == [([2, 3, 5, 8], None)], "where the strategy reads more than the row, all work"


def test_attackers_work_where_nobody_else_is_there_to_be_seen() -> None:
    done: list[tuple[list[int], int | None]] = []
    adversary = Adversary((Group(attacks.build("ipm", {}), torch.tensor([2, 3, 5, 8])),))
    adversary.attacked(work(done), exchange()._replace(batches=Batches(size=4)), HERE._replace(still=work(done)))
    assert done == [([2, 3, 5, 8], None)]


def test_an_attack_that_asks_for_its_own_work_is_not_idle() -> None:
    def looks(honest: Tensor, *, own: Tensor) -> Tensor:
        return own + honest.mean(dim=0)

    assert not attacks.lift(looks, {}).idle
    assert attacks.build("ipm", {}).idle and attacks.build("random_gradients", {}).idle
