"""Partitions: what all of them promise, and what each of them means, by loops."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from fedopt.data import Parts
from fedopt.data.partitions import registry, sampled
from fedopt.data.partitions.dirichlet import dirichlet
from fedopt.data.partitions.dirichlet_equal import dirichlet_equal
from fedopt.data.partitions.iid import iid
from fedopt.data.partitions.natural import natural
from fedopt.data.partitions.quantity import quantity
from fedopt.data.partitions.shards import shards
from fedopt.keys import fold, root, uniform
from fedopt.registry import ConfigError, facts, validate

OPTIONS: dict[str, dict[str, Any]] = {"quantity": {"alpha": 1.0}}
LABELS = (uniform(root(5), 503) * 7).to(torch.int64)
GROUPS = (uniform(root(6), 503) * 12).to(torch.int64)


SHARED = [name for name in registry.names() if facts(registry.get(name)).get("shared")]
DISJOINT = [name for name in registry.names() if name not in SHARED]


def whole(name: str, clients: int | None, seed: int = 0, **options: Any) -> Parts:
    given = {**OPTIONS.get(name, {}), **options}
    parts: Parts = registry.get(name)(
        LABELS, GROUPS, clients, root(seed), **validate(registry.get(name), given, "data.partition")
    )
    return parts


def split(name: str, clients: int | None, seed: int = 0, **options: Any) -> tuple[Tensor, ...]:
    return whole(name, clients, seed, **options).each()


@pytest.mark.parametrize("name", registry.names())
def test_parts_by_loops(name: str) -> None:
    index, sizes = whole(name, 9)
    assert index.dtype == sizes.dtype == torch.int64 and sizes.shape == (9,)
    own, start = [], 0
    for size in sizes.tolist():
        own.append(index[start : start + size].tolist())
        start += size
    assert start == len(index)
    assert all(part and part == sorted(set(part)) for part in own)
    assert own == [part.tolist() for part in split(name, 9)]
    again = Parts.of([torch.tensor(part) for part in own])
    assert again.index.equal(index) and again.sizes.equal(sizes)
    assert facts(registry.get(name))["reference"]


@pytest.mark.parametrize("name", DISJOINT)
def test_every_sample_has_one_owner(name: str) -> None:
    seen = sorted(i for part in split(name, None if name == "natural" else 9) for i in part.tolist())
    assert seen == list(range(503))


GOLDEN = {
    ("dirichlet", 9): "13f8fc814670f670",
    ("dirichlet", 60): "e2241a2f8870a634",
    ("dirichlet_equal", 9): "0dadfa39192db9ce",
    ("dirichlet_equal", 60): "8fb56a7ff208ec17",
    ("iid", 9): "1e86034217910364",
    ("iid", 60): "7a355e0c5ecc429a",
    ("natural", 9): "5cb6d4ba6b3a7546",
    ("quantity", 9): "233f1e7ddecc33e9",
    ("quantity", 60): "c10f14c0e6812e03",
    ("shards", 9): "36a2616fc5cb0098",
    ("shards", 60): "d2d07c3205a7644c",
}


@pytest.mark.parametrize(("name", "clients"), GOLDEN)
def test_who_holds_what_stays_as_it_was(name: str, clients: int) -> None:
    parts = whole(name, clients)
    content = b"".join(tensor.numpy().tobytes() for tensor in parts)
    assert hashlib.sha256(content).hexdigest()[:16] == GOLDEN[name, clients]


@pytest.mark.parametrize("name", registry.names())
def test_the_key_alone_decides(name: str) -> None:
    torch.manual_seed(1)
    one = split(name, 9)
    torch.manual_seed(2)
    two, other = split(name, 9), split(name, 9, seed=1)
    assert [p.tolist() for p in one] == [p.tolist() for p in two]
    assert [p.tolist() for p in one] != [p.tolist() for p in other]


@pytest.mark.parametrize("name", [n for n in DISJOINT if n != "natural"])
def test_the_number_of_clients_is_needed_and_limited(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.clients: missing; the partition '{name}'"):
        split(name, None)
    with pytest.raises(ConfigError, match=r"data\.clients: at least 1 was needed, 0 was given"):
        split(name, 0)
    with pytest.raises(ConfigError, match=r"(?s)client.*data\.clients"):
        split(name, 504)
    assert len(split(name, 1)[0]) == 503


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet_equal", "shards"])
def test_labels_that_are_no_classes_are_refused(name: str) -> None:
    for labels in (torch.zeros(20, 3, dtype=torch.int64), torch.zeros(20)):
        with pytest.raises(ConfigError, match=rf"data\.partition\.name: '{name}' spreads classes.*use iid, quantity"):
            registry.get(name)(labels, None, 2, root(0))


def test_iid_sizes_and_mixture() -> None:
    labels = torch.arange(1000) // 500
    parts = iid(labels, None, 7, root(0)).each()
    assert {len(p) for p in parts} == {142, 143}
    for part in parts:
        assert 0.35 < labels[part].float().mean() < 0.65
    with pytest.raises(ConfigError, match=r"at least 1 per client was needed, but client \d has 0.*3 samples for 5"):
        iid(labels[:3], None, 5, root(0))


def largest_remainder(shares: list[Fraction], total: int) -> list[int]:
    whole = sum(shares)
    counts = [int(s * total / whole) for s in shares]
    rests = [s * total / whole - c for s, c in zip(shares, counts, strict=True)]
    while sum(counts) < total:
        best = max(range(len(rests)), key=lambda i: (rests[i], -i))
        counts[best] += 1
        rests[best] = Fraction(-1)
    return counts


def test_power_law_sizes_by_loops() -> None:
    for clients, exponent, least in ((5, 1, 1), (8, 2, 10), (3, 0, 1)):
        parts = quantity(LABELS, None, clients, root(0), exponent=float(exponent), min_samples=least).each()
        shares = [Fraction(1, (i + 1) ** exponent) for i in range(clients)]
        rest = largest_remainder(shares, 503 - clients * least)
        assert [len(p) for p in parts] == [least + r for r in rest]


def test_dirichlet_sizes_have_the_variance_of_the_distribution() -> None:
    labels, clients, alpha = torch.zeros(20_000, dtype=torch.int64), 10, 2.0
    shares = []
    for seed in range(200):
        shares.append([n / 20_000 for n in quantity(labels, None, clients, root(seed), alpha=alpha).sizes.tolist()])
    measured = torch.tensor(shares).var(0).mean().item()
    assert measured == pytest.approx(0.1 * 0.9 / (clients * alpha + 1), rel=0.1)


def test_quantity_takes_one_law_and_enough_samples() -> None:
    for options in ({}, {"alpha": 1.0, "exponent": 1.0}):
        with pytest.raises(ConfigError, match=r"data\.partition\.alpha: one of alpha"):
            quantity(LABELS, None, 3, root(0), **options)
    with pytest.raises(ConfigError, match=r"data\.partition\.min_samples: at least 200 .*client 0 has 16\d"):
        quantity(LABELS, None, 3, root(0), alpha=1.0, min_samples=200)


def test_dirichlet_proportions_have_the_variance_of_the_distribution() -> None:
    classes, each, clients, alpha = 600, 100, 5, 0.5
    labels = torch.arange(classes).repeat(each)
    table = torch.zeros(clients, classes)
    for i, part in enumerate(dirichlet(labels, None, clients, root(0), alpha=alpha).each()):
        for c in labels[part].tolist():
            table[i, c] += 1
    shares = table / each
    assert shares.sum(0).tolist() == pytest.approx([1.0] * classes)
    assert shares.mean(1).tolist() == pytest.approx([0.2] * clients, abs=0.05)
    assert shares.var(1).mean().item() == pytest.approx(0.2 * 0.8 / (clients * alpha + 1), rel=0.1)


def test_dirichlet_draws_again_until_everyone_has_enough() -> None:
    poor = [min(len(p) for p in split("dirichlet", 9, seed=s, alpha=0.3)) for s in range(10)]
    rich = [min(len(p) for p in split("dirichlet", 9, seed=s, alpha=0.3, min_samples=15)) for s in range(10)]
    assert min(poor) < 15 <= min(rich)
    with pytest.raises(ConfigError) as error:
        split("dirichlet", 9, alpha=0.05, min_samples=50)
    message = str(error.value)
    assert error.value.where == "data.partition.min_samples"
    for said in (
        "at least 50 per client",
        "client ",
        "100 draws",
        "data.partition.alpha (now 0.05)",
        "dirichlet_equal",
    ):
        assert said in message


def test_dirichlet_shuffles_within_a_class() -> None:
    labels = torch.zeros(200, dtype=torch.int64)
    part = dirichlet(labels, None, 2, root(0), alpha=100.0).each()[0]
    assert part.tolist() != list(range(len(part)))


def test_equal_dirichlet_has_equal_sizes_and_its_alpha() -> None:
    labels = torch.arange(20_000) % 10
    for alpha in (0.001, 0.1, 1.0, 10.0, 1000.0):
        parts = dirichlet_equal(labels, None, 100, root(0), alpha=alpha).each()
        assert {len(p) for p in parts} == {200}
        squares = [sum((n / 200) ** 2 for n in torch.bincount(labels[p]).tolist()) for p in parts]
        # E Σ_c q_c² = (1 + α Σ_c p_c²) / (1 + α) for q ~ Dir(α p); near one class per client, classes run out
        want = (1 + alpha / 10) / (1 + alpha)
        assert sum(squares) / 100 == pytest.approx(want, abs=0.05 if alpha >= 0.1 else 0.15)


def test_shards_by_loops() -> None:
    labels = torch.arange(200) % 10
    parts = shards(labels, None, 10, root(2), shards_per_client=2).each()
    pieces = 0
    for part in parts:
        assert len(part) == 20
        counts = [0] * 10
        for c in labels[part].tolist():
            counts[c] += 1
        assert all(n % 10 == 0 for n in counts)  # whole shards of ten samples of one class
        pieces += sum(n // 10 for n in counts)
    assert pieces == 20
    assert any(len(set(labels[p].tolist())) == 2 for p in parts)
    with pytest.raises(
        ConfigError, match=r"data\.partition\.shards_per_client: 10 clients with 21 shards each need 210"
    ):
        shards(labels, None, 10, root(2), shards_per_client=21)


def test_natural_owners_by_loops() -> None:
    groups = torch.tensor([3, 0, 0, 5, 3, 3, 0, 1, 5])
    labels = torch.zeros(9, dtype=torch.int64)
    assert [p.tolist() for p in natural(labels, groups, None, root(0)).each()] == [[1, 2, 6], [7], [0, 4, 5], [3, 8]]
    assert [p.tolist() for p in natural(labels, groups, None, root(0), min_samples=3).each()] == [[1, 2, 6], [0, 4, 5]]
    owners = {0: [1, 2, 6], 1: [7], 3: [0, 4, 5], 5: [3, 8]}
    chosen = set()
    for seed in range(20):
        two = [p.tolist() for p in natural(labels, groups, 2, fold(root(seed), "x")).each()]
        assert len(two) == 2 and all(p in owners.values() for p in two) and two[0] != two[1]
        chosen.add(tuple(map(tuple, two)))
    assert len(chosen) > 3
    with pytest.raises(ConfigError, match=r"data\.clients: data\.clients = 5 was needed, 4 of the 4 natural owners"):
        natural(labels, groups, 5, root(0))
    with pytest.raises(ConfigError, match=r"data\.partition\.min_samples: at least one .* 0 of the 4 .*largest has 3"):
        natural(labels, groups, None, root(0), min_samples=4)
    with pytest.raises(ConfigError, match=r"data\.partition\.name: 'natural' needs a source with natural owners"):
        natural(labels, None, None, root(0))


def draw(clients: int, samples: int, pool: int = 12, seed: int = 0) -> list[list[int]]:
    labels = torch.zeros(pool, dtype=torch.int64)
    return [p.tolist() for p in sampled.sampled(labels, None, clients, root(seed), samples=samples).each()]


def test_sampled_clients_are_independent_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = draw(5, 4), draw(300, 4)
    assert many[:5] == few  # a population grows at its end
    assert draw(300, 4, seed=1) != many
    monkeypatch.setattr(sampled, "CELLS", 7)
    assert draw(300, 4) == many  # however many are drawn at a time
    for i, j in ((0, 1), (3, 200)):
        # two clients hold a hypergeometric number of the same samples; any two are alike in that
        assert set(many[i]) != set(many[j])
    common = [len(set(a) & set(b)) for a, b in zip(many[::2], many[1::2], strict=True)]
    expected = stats.hypergeom(12, 4, 4).pmf(range(3)) * 150
    seen = [common.count(k) for k in range(3)]
    rest = [150 - sum(seen), 150 - sum(expected)]
    assert stats.chisquare([*seen, rest[0]], [*expected, rest[1]]).pvalue > 0.01


def test_every_set_of_samples_is_equally_likely() -> None:
    sets: dict[tuple[int, ...], int] = {}
    for part in draw(6000, 2, pool=5):
        sets[tuple(part)] = sets.get(tuple(part), 0) + 1
    assert len(sets) == 10 and all(a < b for a, b in sets)
    assert stats.chisquare(list(sets.values())).pvalue > 0.01


def test_sampled_needs_enough_samples() -> None:
    assert draw(3, 12) == [list(range(12))] * 3
    with pytest.raises(ConfigError, match=r"data\.partition\.samples: 13 per client was given, there are 12 samples"):
        draw(3, 13)
    for clients, said in ((None, "missing; the partition 'sampled'"), (0, "at least 1 was needed, 0 was given")):
        with pytest.raises(ConfigError, match=rf"data\.clients: {said}"):
            split("sampled", clients)


def test_unknown_options_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"data\.partition\.alhpa: unknown option\. Did you mean 'alpha'"):
        split("dirichlet", 3, alhpa=0.1)
