"""From a data set to parties with columns of the same people: against the source by loops, and what is refused."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt.data import Dataset, Federation, Split, federate_vertically
from fedopt.data.vertical.even import even
from fedopt.keys import fold, root, uniform
from fedopt.registry import ConfigError

KEY = root(5)


def dataset(samples: int = 60, width: int = 7, **changes: Any) -> Dataset:
    """Person i has 100 i + j + 1 in column j, so that every number says where it is from; labels are far from these."""
    x = 100.0 * torch.arange(samples)[:, None] + torch.arange(width) + 1.0
    y = (uniform(root(1), samples) * 3).to(torch.int64)
    return Dataset(x, y, ("a", "b", "c"))._replace(**changes)


def cut(data: Dataset | None = None, parties: int = 3, **options: Any) -> Federation:
    options = {"normalise": "none", "key": KEY, **options}
    return federate_vertically(dataset() if data is None else data, parties=parties, **options)


def block(federation: Federation, split: str, party: int) -> Tensor:
    """A party's rows, by the rule of `Shards`."""
    held = federation.splits[split]
    rows = [held.x[held.index[p]] for p in range(int(held.offsets[party]), int(held.offsets[party + 1]))]
    return torch.stack(rows)


def people(federation: Federation, split: str) -> list[int]:
    """Who is at which place, by the first number of party 0."""
    return [int(row[0]) // 100 for row in block(federation, split, 0)]


def columns(federation: Federation, split: str, party: int) -> list[int]:
    """Which columns of the source a party has, by its first person; columns of zeros are filling."""
    return [int(v) % 100 - 1 for v in block(federation, split, party)[0].tolist() if v]


@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize(
    "partition",
    [
        ("even", {}),
        ("even", {"shuffle": True}),
        ("by_size", {"sizes": [4, 1, 2]}),
        ("importance", {"alpha": 0.5}),
        ("correlation", {"steps": 5}),
    ],
    ids=str,
)
def test_a_party_has_its_own_columns_of_the_common_people(
    partition: tuple[str, dict[str, Any]], missing: float
) -> None:
    data = dataset()
    name, options = partition
    how = "hashed" if missing else "given"
    got = cut(data, partition=name, partition_options=options, missing=missing, alignment=how)
    assert set(got.splits) == set(got.server) == {"train", "test"}
    held_by = [columns(got, "train", party) for party in range(3)]
    assert sorted(column for own in held_by for column in own) == list(range(7))
    width = max(map(len, held_by))
    for split in ("train", "test"):
        held, labels = got.splits[split], got.server[split]
        m = len(labels.y)
        assert held.x.shape == (3 * m, width) and held.clients == 3
        assert held.index.tolist() == list(range(3 * m)) and held.offsets.tolist() == [0, m, 2 * m, 3 * m]
        assert held.y.shape == (3 * m, 0), "parties have no labels"
        assert labels.x.shape == (m, 0)
        who = people(got, split)
        assert len(who) == m == len(set(who))
        for place, person in enumerate(who):
            assert labels.y[place] == data.y[person]
            for party in range(3):
                row = held.x[party * m + place].tolist()
                own = held_by[party]
                assert row == [float(data.x[person, column]) for column in own] + [0.0] * (width - len(own))
    assert not set(people(got, "train")) & set(people(got, "test"))
    if not missing:
        assert sorted(people(got, "train") + people(got, "test")) == list(range(60))
    assert [got.name(party) for party in range(3)] == [
        f"party {p} ({len(own)} features)" for p, own in enumerate(held_by)
    ]
    assert got.class_names == ("a", "b", "c") and got.task == "classification"


def test_parties_have_no_labels() -> None:
    """Labels that are found nowhere else: no tensor of a party's splits has one."""
    data = dataset(y=torch.arange(60) % 3 + 997, class_names=tuple(map(str, range(1000))), test=None)
    got = cut(data, normalise="none")
    for held in got.splits.values():
        for tensor in held:
            assert not torch.isin(tensor, torch.tensor([997, 998, 999], dtype=tensor.dtype)).any()
    # nor does anything of them depend on the labels but who is held out
    one = cut(dataset(test=Split(dataset().x[:9], dataset().y[:9])), partition="importance")
    other = cut(dataset(test=Split(dataset().x[:9], 2 - dataset().y[:9]), y=2 - dataset().y), partition="importance")
    assert all(a.equal(b) for name in one.splits for a, b in zip(one.splits[name], other.splits[name], strict=True))
    assert not one.server["train"].y.equal(other.server["train"].y)


def test_held_out_people_are_stratified_or_the_published_ones() -> None:
    data = dataset(y=torch.tensor([0] * 40 + [1] * 20))
    got = cut(data, test_share=0.25)
    assert torch.bincount(got.server["test"].y).tolist() == [10, 5]
    assert set(cut(data, test_share=0.0).splits) == {"train"} == set(cut(data, test_share=0.0).server)
    test = Split(dataset(75).x[60:], torch.ones(15, dtype=torch.int64))
    published = cut(data._replace(test=test), test_share=0.25)
    assert people(published, "train") == list(range(60)) and people(published, "test") == list(range(60, 75))
    assert published.server["test"].y.tolist() == [1] * 15


@pytest.mark.parametrize(("axis", "width"), [(1, 2), (2, 2), (-1, 3)])
def test_images_are_cut_along_an_axis(axis: int, width: int) -> None:
    images = uniform(root(9), 20, 3, 4, 5) + 1.0
    data = Dataset(images, torch.arange(20) % 2, ("a", "b"))
    got = cut(data, parties=2, partition_options={"axis": axis}, test_share=0.0)
    blocks = [block(got, "train", party) for party in range(2)]
    front = axis % 4
    size = images.shape[front]
    own = -(-size // 2)
    for person in range(20):
        for channel in range(3):
            for row in range(4):
                for column in range(5):
                    place = [channel, row, column]
                    position = place[front - 1]
                    party = int(position >= own)
                    place[front - 1] = position - own * party
                    assert blocks[party][(person, *place)] == images[person, channel, row, column]
    filling = blocks[1].narrow(front, size - own, 2 * own - size)
    assert blocks[0].shape[front] == own and (filling == 0).all() and (blocks[0] > 0).all()
    rest = 60 // size
    assert got.client_names == (f"party 0 ({own * rest} features)", f"party 1 ({(size - own) * rest} features)")
    assert got.inputs[front - 1] == own == width


@pytest.mark.parametrize("how", ["variance", "standard"])
def test_normalised_by_the_training_people_alone(how: str) -> None:
    x = uniform(root(2), 50, 5) * torch.tensor([1.0, 1e-3, 1e4, 1.0, 1.0]) + torch.tensor([5.0, 0.0, -1e4, 0.0, 0.0])
    x[:, 3] = 0.1  # constant in training
    x[:, 4] = (torch.arange(50) % 4 == 0).float()  # with zeros
    test = Split(x[:10] * 2.0 + 1.0, torch.zeros(10, dtype=torch.int64))
    data = Dataset(x, torch.arange(50) % 2, ("a", "b"), test=test)
    got = cut(data, parties=2, normalise=how)
    where = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1)}
    for column, (party, place) in where.items():
        values = x[:, column].double()
        mean = sum(values.tolist()) / 50
        deviation = (sum((v - mean) ** 2 for v in values.tolist()) / 50) ** 0.5
        if column == 3:
            mean, deviation = 0.0, 1.0
        shift = mean if how == "standard" else 0.0
        for split, source in (("train", x), ("test", test.x)):
            wanted = (source[:, column].double() - shift) / deviation
            torch.testing.assert_close(block(got, split, party)[:, place].double(), wanted, rtol=1e-5, atol=1e-4)
    assert (block(got, "train", 1)[:, 2] == 0).all() and (block(got, "test", 1)[:, 2] == 0).all()
    zeros = block(got, "train", 1)[:, 1] == 0
    assert zeros.equal(x[:, 4] == 0) if how == "variance" else not zeros.any()
    assert block(cut(data, parties=2), "train", 0).equal(x[:, :3])  # the source is not changed
    default = federate_vertically(data, parties=2, key=KEY)
    assert default.splits["train"].x.equal(got.splits["train"].x) == (how == "variance")


def test_tiny_numbers_do_not_become_infinite() -> None:
    x = torch.zeros(10, 2)
    x[0] = 1e-45  # whose deviation is no number of this format but 0
    got = cut(Dataset(x, torch.arange(10) % 2, ("a", "b")), parties=2, normalise="standard", test_share=0.0)
    assert got.splits["train"].x.isfinite().all()


def test_tables_lie_column_by_column() -> None:
    held = cut(partition_options={"shuffle": True}).splits["train"]
    assert held.x.T.is_contiguous() and held.offsets.dtype == held.index.dtype == torch.int64


@pytest.mark.parametrize("parties", [1, 4])
def test_everybody_lacks_as_many_and_by_key(parties: int) -> None:
    """The people are those of the whole whom nobody lacks, drawn for every party and the label owner by itself."""
    data = dataset(200)
    whole = cut(data, parties=parties)
    got = cut(data, parties=parties, missing=0.1, alignment="hashed")
    for split in ("train", "test"):
        before, after = people(whole, split), people(got, split)
        assert after == [person for person in before if person in after]  # still in the source's order
        lost = len(before) - len(after)
        assert 0.1 * len(before) < lost <= round(0.1 * len(before)) * (parties + 1)
    again = cut(data, parties=parties, missing=0.1, alignment="hashed")
    assert people(again, "train") == people(got, "train")
    other = cut(data, parties=parties, missing=0.1, alignment="hashed", key=fold(KEY, 1))
    assert people(other, "train") != people(got, "train")


def test_psi_gives_the_same_federation() -> None:
    pytest.importorskip("private_set_intersection.python", reason="needs openmined-psi: pip install 'fedopt[vfl]'")
    one, other = (cut(missing=0.2, alignment=how) for how in ("psi", "hashed"))
    for name in one.splits:
        assert all(a.equal(b) for a, b in zip(one.splits[name], other.splits[name], strict=True))
        assert one.server[name].y.equal(other.server[name].y)


def test_the_key_alone_decides() -> None:
    options = {"partition": "importance", "missing": 0.1, "alignment": "hashed"}
    torch.manual_seed(1)
    one = cut(**options)
    torch.manual_seed(2)
    two, other = cut(**options), cut(**options, key=fold(KEY, 1))
    assert one.client_names == two.client_names
    assert one.splits["train"].x.equal(two.splits["train"].x) and one.server["test"].y.equal(two.server["test"].y)
    assert people(one, "test") != people(other, "test")


def test_regression() -> None:
    data = dataset(y=uniform(root(3), 60), class_names=(), task="regression")
    got = cut(data)
    assert got.task == "regression" and got.class_names == ()
    assert all(got.server["train"].y[k] == data.y[person] for k, person in enumerate(people(got, "train")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("partition", ["even", "importance", "correlation"])
def test_features_that_are_not_finite(value: float, partition: str) -> None:
    options = {"partition": partition, "partition_options": {"steps": 5} if partition == "correlation" else {}}
    sound = cut(**options)
    holder = next(party for party in range(3) if 4 in columns(sound, "train", party))
    for split in ("train", "test"):
        bad = dataset(test=Split(dataset(20).x, dataset(20).y))
        x = bad.x if split == "train" else bad.test.x  # type: ignore[union-attr]
        x[3, 4] = x[7, 4] = value
        who = rf"party {holder}" if partition == "even" else r"party [012]"
        samples = 60 if split == "train" else 20
        message = rf"data\.name: .*column 4, which {who} holds, has 2 numbers that are NaN.*{samples} {split} samples"
        with pytest.raises(ConfigError, match=message):
            cut(bad, **options)
    bad = dataset(test=None)
    bad.x[:, 0] = bad.x[0, 1] = value
    with pytest.raises(ConfigError, match=r"column 0, which party 0 holds, has \d+ numbers.*and 1 more of its columns"):
        cut(bad)


def test_a_label_owner_without_labels() -> None:
    for y in (None, torch.empty(0, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"data\.name: the label owner has no labels"):
            cut(dataset(y=y))
    with pytest.raises(ConfigError, match=r"data\.name: the source gave 59 labels and 60 features"):
        cut(dataset(y=torch.zeros(59, dtype=torch.int64)))
    y = torch.zeros(60)
    y[5] = float("nan")
    with pytest.raises(ConfigError, match=r"finite labels were needed; 1 of the label owner's \d+ (train|test) labels"):
        cut(dataset(y=y, class_names=(), task="regression"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parties": 8}, r"data\.clients: 8 was given, and there are 7 columns"),
        ({"parties": 0}, r"data\.clients: at least 1 was needed"),
        ({"test_share": 1.0}, r"data\.test_share: a share in \[0, 1\)"),
        ({"test_share": 0.999}, r"data\.test_share: nothing is left to train on"),
        ({"missing": 1.0}, r"data\.vertical\.missing: a share in \[0, 1\) was needed, 1\.0 was given"),
        ({"missing": -0.1}, r"data\.vertical\.missing: a share in"),
        (
            {"missing": 0.1},
            r"data\.vertical\.alignment: 'given' needs.*data\.vertical\.missing = 0\.1.*use 'psi' or 'hashed'",
        ),
        (
            {"missing": 0.9, "alignment": "hashed"},
            r"data\.vertical\.missing: 2 or more train people whom everybody has.*of 48",
        ),
        ({"alignment": "exact"}, r"data\.vertical\.alignment: one of given, hashed, psi"),
        (
            {"normalise": "minmax"},
            r"data\.vertical\.normalise: one of none, variance, standard was needed, 'minmax' was given",
        ),
        ({"partition": "evn"}, r"data\.vertical\.name: no vertical component 'evn'\. Did you mean 'even'\?"),
        ({"partition_options": {"shufle": True}}, r"data\.vertical\.shufle: unknown option\. Did you mean 'shuffle'"),
        ({"partition_options": {"axis": 2}}, r"data\.vertical\.axis: an axis of features was needed"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cut(**options)


def test_tokens_have_no_deviation() -> None:
    data = Dataset(torch.arange(40).reshape(10, 4), torch.arange(10) % 2, ("a", "b"), vocabulary=40)
    assert cut(data, parties=2, test_share=0.0).vocabulary == 40
    with pytest.raises(
        ConfigError, match=r"data\.vertical\.normalise: features of torch\.int64 have no deviation; use 'none'"
    ):
        cut(data, parties=2, normalise="variance")


def test_a_test_set_of_another_kind() -> None:
    with pytest.raises(ConfigError, match=r"data\.name: a test set of the training samples' kind, \[7\]"):
        cut(dataset(test=Split(torch.zeros(5, 6), torch.zeros(5, dtype=torch.int64))))


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ([[0, 1], [2, 3, 4], [5, 6, 1]], "gave column 1 2 times, to party 0 and party 2"),
        ([[0, 1, 1], [2, 3, 4], [5, 6]], "gave column 1 2 times, to party 0"),
        ([[0], [2, 3, 4], [5, 6]], "gave column 1 to nobody"),
        ([[0, 1], [], [2, 3, 4, 5, 6]], "has to give int64 positions of columns, and for party 1 does not"),
        ([[0, 1], [2, 3, 4, 5, 6]], "gave 2 parties, data.clients is 3"),
        ([[0, 1], [2, 3, 4], [5, 7]], "has to give columns 0 to 6, and gave 5 to 7 to party 2"),
    ],
)
def test_a_partition_that_breaks_its_promise(
    gives: list[list[int]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("broken_partition")
    module.mine = lambda x, y, parties, key: [torch.tensor(own) for own in gives]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken_partition", module)
    with pytest.raises(ConfigError, match=rf"data\.vertical\.name: 'broken_partition:mine' .*{message}"):
        cut(partition="broken_partition:mine")


def test_a_partition_sees_the_training_people(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    module = ModuleType("looking_partition")

    def mine(x: Tensor, y: Tensor, parties: int, key: Tensor, *, axis: int = 1) -> list[Tensor]:
        seen.append((x, y))
        return even(x, y, parties, key, axis=axis)

    module.mine = mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "looking_partition", module)
    images = uniform(root(9), 20, 3, 4, 5) + 1.0
    got = cut(Dataset(images, torch.arange(20) % 2, ("a", "b")), partition="looking_partition:mine")
    assert seen[0][1].equal(got.server["train"].y) and len(seen[0][0]) == 16
    assert got.inputs == (1, 4, 5)  # cut where the partition says by default
