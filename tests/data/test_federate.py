"""From a data set to everybody's data, and the changes to a federation, by loops."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt.data import Dataset, Federation, Parts, Split, _federate, counts, federate, pool, relabel
from fedopt.keys import root, uniform
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

KEY = root(11)


def dataset(samples: int = 400, classes: int = 4, **changes: Any) -> Dataset:
    """Sample i has the features [i], so that it can be recognised everywhere; classes are of unequal size."""
    x = torch.arange(samples, dtype=torch.float32)[:, None]
    y = (uniform(root(1), samples) ** 2 * classes).to(torch.int64)
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset(x, y, names)._replace(**changes)


def held(federation: Federation, split: str, client: int) -> list[tuple[int, int]]:
    """(sample, label) of a client."""
    part = federation.splits[split]
    found = []
    for p in range(int(part.offsets[client]), int(part.offsets[client + 1])):
        found.append((int(part.x[part.index[p]]), int(part.y[p])))
    return found


def everything(federation: Federation) -> list[int]:
    found = []
    for split in federation.splits:
        for client in range(federation.clients):
            found += [sample for sample, _ in held(federation, split, client)]
    for x, _ in federation.server.values():
        found += [int(value) for value in x]
    return found


@pytest.mark.parametrize("valid", [0.0, 0.25])
@pytest.mark.parametrize("trial", [0, 37])
def test_every_sample_is_in_one_place_with_its_label(valid: float, trial: int) -> None:
    data = dataset()
    got = federate(data, clients=7, valid_share=valid, trial_samples=trial, key=KEY)
    assert sorted(everything(got)) == list(range(400))
    for split in got.splits:
        for client in range(7):
            assert all(label == data.y[sample] for sample, label in held(got, split, client))
    for x, y in got.server.values():
        assert all(data.y[int(i)] == label for i, label in zip(x, y, strict=True))
    assert set(got.splits) == ({"train", "valid"} if valid else {"train"})
    assert set(got.server) == ({"test", "trial"} if trial else {"test"})
    assert [got.name(i) for i in range(7)] == [f"client {i}" for i in range(7)]
    assert got.inputs == (1,) and got.classes == 4
    assert got.splits["train"].x is data.x  # no copy per client


def quota(totals: list[int], count: int) -> list[int]:
    """Largest remainders, one seat after another."""
    samples = sum(totals)
    seats = [n * count // samples for n in totals]
    rests = [n * count % samples for n in totals]
    while sum(seats) < count:
        best = max(range(len(rests)), key=lambda c: (rests[c], -c))
        seats[best] += 1
        rests[best] = -1
    return seats


def tally(y: Tensor, classes: int = 4) -> list[int]:
    return [sum(int(label) == c for label in y) for c in range(classes)]


def test_server_sets_are_stratified() -> None:
    data = dataset()
    got = federate(data, clients=3, test_share=0.13, trial_samples=41, key=KEY)
    test = quota(tally(data.y), 52)
    assert tally(got.server["test"].y) == test
    rest = [n - t for n, t in zip(tally(data.y), test, strict=True)]
    assert tally(got.server["trial"].y) == quota(rest, 41)
    indices = [int(i) for i in got.server["test"].x]
    assert indices == sorted(indices) and indices != list(range(52))


def test_a_published_test_set_is_kept_and_nothing_else_held_out() -> None:
    own = Split(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64))
    got = federate(dataset(test=own), clients=3, key=KEY)
    assert got.server["test"] is own and int(got.splits["train"].sizes.sum()) == 400
    assert federate(dataset(), clients=3, test_share=0.0, key=KEY).server == {}


def test_valid_sizes_by_loops() -> None:
    groups = torch.tensor([g for g in range(12) for _ in range(g + 1)])
    data = dataset(len(groups), groups=groups, group_names=tuple(f"owner {g}" for g in range(12)))
    for share in (0.01, 0.3, 0.5, 0.99):
        got = federate(data, clients=None, partition="natural", test_share=0.0, valid_share=share, key=KEY)
        for client in range(12):
            n = client + 1
            valid = 0 if n == 1 else min(max(round(share * n), 1), n - 1)
            assert len(held(got, "valid", client)) == valid and len(held(got, "train", client)) == n - valid
        assert sorted(everything(got)) == list(range(len(groups)))
    # not the first ones, nor the last
    got = federate(data, clients=None, partition="natural", test_share=0.0, valid_share=0.5, key=KEY)
    largest = [sample for sample, _ in held(got, "valid", 11)]
    assert largest not in (list(range(66, 72)), list(range(72, 78)))


def test_valid_samples_are_the_same_however_many_are_split_off_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = torch.tensor([g for g in range(12) for _ in range(g + 1)])
    data = dataset(len(groups), groups=groups, group_names=tuple(f"owner {g}" for g in range(12)))
    wanted = federate(data, clients=None, partition="natural", valid_share=0.4, key=KEY)
    for cells in (1, 5, 30):
        monkeypatch.setattr(_federate, "CELLS", cells)
        got = federate(data, clients=None, partition="natural", valid_share=0.4, key=KEY)
        for split in ("train", "valid"):
            for a, b in zip(got.splits[split], wanted.splits[split], strict=True):
                assert a.equal(b)


def test_samples_may_be_shared_where_the_partition_says_so() -> None:
    data = dataset()
    options = {"samples": 30}
    got = federate(data, clients=50, partition="sampled", partition_options=options, valid_share=0.2, key=KEY)
    tested = {int(i) for i in got.server["test"].x}
    union = set()
    for client in range(50):
        own = [*held(got, "train", client), *held(got, "valid", client)]
        assert len(held(got, "train", client)) == 24 and len({sample for sample, _ in own}) == 30
        assert all(label == data.y[sample] for sample, label in own)
        union |= {sample for sample, _ in own}
    assert union <= set(range(400)) - tested and len(union) > 300
    assert pool(got).splits["train"].sizes.tolist() == [50 * 24]


def test_sizes_of_some_clients_by_loops() -> None:
    train = federate(dataset(), clients=6, partition="dirichlet", key=KEY).splits["train"]
    some = torch.tensor([4, 0, 5])
    assert train.held(some).tolist() == [int(train.offsets[c + 1] - train.offsets[c]) for c in some.tolist()]


def test_natural_clients_have_the_names_of_their_owners() -> None:
    groups = torch.arange(400) % 5
    data = dataset(groups=groups, group_names=("ann", "ben", "cid", "dan", "eve"))
    got = federate(data, clients=3, partition="natural", valid_share=0.2, key=KEY)
    assert len(got.client_names) == 3
    for client in range(3):
        name = got.name(client)
        for sample, _ in held(got, "train", client) + held(got, "valid", client):
            assert data.group_names[sample % 5] == name
    assert federate(data, clients=5, key=KEY).name(0) == "client 0"


def test_the_key_alone_decides() -> None:
    one, two = (federate(dataset(), clients=5, valid_share=0.1, trial_samples=9, key=KEY) for _ in range(2))
    other = federate(dataset(), clients=5, valid_share=0.1, trial_samples=9, key=root(12))
    assert everything(one) == everything(two) != everything(other)


def test_sequences_and_regressions() -> None:
    sequence = dataset(y=torch.zeros(400, 3, dtype=torch.int64))
    got = federate(sequence, clients=4, trial_samples=10, valid_share=0.1, key=KEY)
    assert got.splits["train"].y.shape[1:] == (3,) and len(got.server["test"].y) == 80
    assert counts(got).tolist() == [[int(n)] for n in got.splits["train"].sizes]
    numbers = dataset(y=torch.rand(400), task="regression", class_names=())
    got = federate(numbers, clients=4, key=KEY)
    assert counts(got).tolist() == [[80]] * 4 and got.task == "regression"
    assert sorted(everything(got)) == list(range(400))


def test_ten_thousand_clients_within_two_seconds() -> None:
    data = dataset(60_000, 10)
    for partition, options in (("iid", {}), ("dirichlet_equal", {"alpha": 0.1}), ("quantity", {"exponent": 1.0})):
        start = time.perf_counter()
        got = federate(data, clients=10_000, partition=partition, partition_options=options, valid_share=0.2, key=KEY)
        assert time.perf_counter() - start < 2.0
        assert got.clients == 10_000 and got.name(9_999) == "client 9999"
        assert int(got.splits["train"].sizes.min()) >= 1


def test_counts_by_loops() -> None:
    got = federate(dataset(), clients=6, valid_share=0.3, partition="dirichlet", key=KEY)
    for split in ("train", "valid"):
        table = counts(got, split)
        assert table.shape == (6, 4)
        for client in range(6):
            want = [0] * 4
            for _, label in held(got, split, client):
                want[label] += 1
            assert table[client].tolist() == want
    with pytest.raises(FedoptError, match="the clients have the splits train, valid, 'tests' was asked for"):
        counts(got, "tests")


def test_pool() -> None:
    got = federate(dataset(), clients=6, valid_share=0.3, key=KEY)
    one = pool(got)
    assert one.clients == 1 and one.name(0) == "all clients" and one.server is got.server
    for split in ("train", "valid"):
        assert held(one, split, 0) == [pair for client in range(6) for pair in held(got, split, client)]


def test_relabel() -> None:
    got = federate(dataset(), clients=6, key=KEY)
    before = [held(got, "train", client) for client in range(6)]
    asked = []

    def flip(labels: Tensor, client: int) -> Tensor:
        asked.append(client)
        labels.mul_(-1).add_(3)  # in place, which must not reach the source
        return labels

    changed = got._replace(splits={"train": relabel(got.splits["train"], [4, 1], flip)})
    assert asked == [1, 4]
    for client in range(6):
        want = [(sample, 3 - label if client in (1, 4) else label) for sample, label in before[client]]
        assert held(changed, "train", client) == want
        assert held(got, "train", client) == before[client]
    train = got.splits["train"]
    assert relabel(train, client_ids=[], labels_function=flip).y.equal(train.y)
    with pytest.raises(FedoptError, match="clients 0 to 5 can get other labels, client 6 was given"):
        relabel(train, [6], flip)
    with pytest.raises(FedoptError, match=r"torch\.int64 labels of shape \[\d+\] were needed for client 2.*float32"):
        relabel(train, [2], lambda labels, client: labels.float())


def test_numbers_that_leave_nothing_are_errors() -> None:
    for options, where, said in (
        ({"test_share": 1.0}, "data.test_share", r"a share in \[0, 1\) was needed, 1.0 was given"),
        ({"valid_share": -0.1}, "data.valid_share", "-0.1 was given"),
        ({"test_share": 0.999}, "data.test_share", "nothing is left to train on after 400 of 400 samples"),
        ({"trial_samples": 320}, "data.trial_samples", "320 was given, and the training part has 320 samples"),
        ({"trial_samples": -1}, "data.trial_samples", "0 or more was needed"),
        ({"clients": None}, "data.clients", "missing"),
        ({"clients": 321}, "data.clients", "320 samples for 321 clients"),
        ({"partition": "idd"}, "data.partition.name", "Did you mean 'iid'"),
        ({"partition_options": {"alpha": 1}}, "data.partition.alpha", "unknown option"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            federate(dataset(), **{"clients": 4, "key": KEY, **options})  # type: ignore[arg-type]
        assert error.value.where == where


def test_a_source_that_contradicts_itself_is_an_error() -> None:
    for changes, said in (
        ({"x": torch.zeros(399, 1)}, "400 labels and 399 features"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, "400 labels and 3 groups"),
        ({"y": torch.full((400,), 4)}, "class indices below 4 were needed, the source gave torch.int64 .* 4 to 4"),
        ({"y": torch.full((400,), -1)}, "from -1 to -1"),
        ({"y": torch.zeros(400)}, "torch.float32"),
        ({"x": torch.zeros(1, 1), "y": torch.zeros(1, dtype=torch.int64)}, "at least 2 samples"),
    ):
        with pytest.raises(ConfigError, match=rf"data\.name: .*{said}"):
            federate(dataset(**changes), clients=4, key=KEY)


def test_a_partition_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_partitions")

    def halves(labels: Tensor, groups: Tensor | None, clients: int | None, key: Tensor, *, first: int) -> Parts:
        return Parts.of([torch.arange(first), torch.arange(first, len(labels))])

    module.halves = halves  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_partitions", module)
    got = federate(
        dataset(), clients=2, partition="my_partitions:halves", partition_options={"first": 50}, test_share=0.0, key=KEY
    )
    assert [sample for sample, _ in held(got, "train", 0)] == list(range(50))
    three = torch.arange(3)
    for broken, said in (
        (Parts.of([three]), "gave 1 clients, data.clients is 2"),
        (Parts.of([three, torch.arange(0)]), "left client 1 without samples"),
        (Parts.of([three, torch.arange(2, 5)]), "gave a sample to two clients"),
        (Parts.of([three, torch.tensor([400])]), "int64 indices below 400"),
        (Parts.of([three, torch.tensor([-1])]), "int64 indices below 400"),
        (Parts(three, torch.tensor([3, 1])), "gave 3 samples and sizes that add up to 4"),
        (Parts(three.int(), torch.tensor([1, 2])), "int64 indices below 400"),
        (Parts(three, torch.tensor([4, -1])), "left client 1 without samples"),
        ([three, three + 3], r"has to give fedopt\.data\.Parts\(index, sizes\), list was given"),
    ):
        module.broken = lambda *_, parts=broken: parts  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=rf"data\.partition\.name: .*{said}"):
            federate(dataset(), clients=2, partition="my_partitions:broken", test_share=0.0, key=KEY)


def test_a_federation_of_digits() -> None:
    from fedopt.data.digits import digits

    got = federate(digits(), clients=20, partition="dirichlet", partition_options={"alpha": 0.3}, key=KEY)
    assert got.inputs == (1, 8, 8) and int(counts(got).sum()) + len(got.server["test"].y) == 1797
    assert got.server["test"].y.bincount().tolist() == quota(tally(digits().y, 10), 359)
