"""Who attacks, what an attack sees, and what the server gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedopt import attacks, keys
from fedopt.data import Dataset, federate
from fedopt.engine.adversary import Adversary, Group
from fedopt.engine.collect import gather, merge
from fedopt.types import Attack, Exchange, Replies, Uplink

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
    def vectors(rows: Tensor, *, b: int, n: int, key: Tensor) -> Tensor:
        seen.append(rows.clone())
        return torch.full((b, rows.shape[1]), 100.0 * n)

    return Attack("spy", knowledge, vectors, None)  # type: ignore[arg-type]


def exchange(reduce: str = "rows") -> Exchange:
    return Exchange("train", torch.tensor([2, 3, 5, 8]), {}, reduce=reduce)  # type: ignore[arg-type]


@pytest.mark.parametrize(("knowledge", "rows"), [("own", [1, 3]), ("colluders", [1, 3]), ("omniscient", [0, 2])])
def test_what_an_attack_sees_and_changes(knowledge: str, rows: list[int]) -> None:
    seen: list[Tensor] = []
    adversary = Adversary((Group(spy(knowledge, seen), torch.tensor([3, 8, 11])),))
    replies = adversary.attacked(execute, exchange(), keys.root(0))
    assert torch.equal(seen[0], ROWS[rows])
    assert torch.equal(seen[1], -ROWS[rows])  # control variates have the length of the model, too
    assert torch.equal(replies.vectors["delta"][[0, 2]], ROWS[[0, 2]])
    assert bool((replies.vectors["delta"][[1, 3]] == 400.0).all())
    assert torch.equal(replies.vectors["buffers"], torch.ones(4, 2))


def test_the_mean_is_formed_after_the_attack() -> None:
    adversary = Adversary((Group(spy("own", []), torch.tensor([8])),))
    replies = adversary.attacked(execute, exchange("mean"), keys.root(0))
    wanted = (1 * ROWS[0] + 2 * ROWS[1] + 3 * ROWS[2] + 4 * 400.0) / 10
    torch.testing.assert_close(replies.vectors["delta"], wanted[None])
    assert replies.exchange.reduce == "mean" and replies.weights.tolist() == [10.0]


def test_no_attacker_in_the_cohort_changes_nothing() -> None:
    adversary = Adversary((Group(spy("omniscient", []), torch.tensor([0, 1])),))
    for reduce in ("rows", "mean"):
        attacked = adversary.attacked(execute, exchange(reduce), keys.root(0))
        plain = execute(exchange(reduce))
        torch.testing.assert_close(attacked.vectors["delta"], plain.vectors["delta"])


def test_an_attack_that_sends_nan_is_rejected_by_name() -> None:
    attack = Attack("nan", "own", lambda rows, *, b, n, key: rows * float("nan"), None)
    adversary = Adversary((Group(attack, torch.tensor([5])),))
    replies = adversary.attacked(execute, exchange(), keys.root(0))
    assert replies.clients.tolist() == [2, 3, 8]
    assert [(r.client, "delta" in r.reason) for r in replies.rejected] == [(5, True)]


def test_two_attacks_at_once() -> None:
    flip = attacks.build("sign_flip", {})
    scaled = attacks.build("sign_flip", {"scale": 10.0})
    adversary = Adversary((Group(flip, torch.tensor([2])), Group(scaled, torch.tensor([8]))))
    delta = adversary.attacked(execute, exchange(), keys.root(0)).vectors["delta"]
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
