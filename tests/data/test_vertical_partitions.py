"""Vertical partitions: what all of them promise, and what each of them means, by loops."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedopt.data.vertical import registry
from fedopt.data.vertical.by_size import by_size
from fedopt.data.vertical.correlation import _icor, _pcor, _search, _spearman, correlation
from fedopt.data.vertical.even import even
from fedopt.data.vertical.importance import importance
from fedopt.keys import fold, normal, root, uniform
from fedopt.registry import ConfigError, facts, validate

OPTIONS: dict[str, dict[str, Any]] = {
    "by_size": {"alpha": 0.3},
    "correlation": {"steps": 20},
    "even": {"shuffle": True},
}
TABLE = normal(root(3), 50, 17)
LABELS = (uniform(root(4), 50) * 3).to(torch.int64)
TABLES_ONLY = ["correlation", "importance"]


def cut(name: str, parties: int, seed: int = 0, x: Tensor = TABLE, **options: Any) -> list[Tensor]:
    given = validate(registry.get(name), {**OPTIONS.get(name, {}), **options}, "data.vertical")
    columns: list[Tensor] = registry.get(name)(x, LABELS, parties, root(seed), **given)
    return columns


@pytest.mark.parametrize("parties", [1, 2, 5, 17])
@pytest.mark.parametrize("name", registry.names())
def test_every_column_is_with_one_party(name: str, parties: int) -> None:
    columns = cut(name, parties)
    assert len(columns) == parties and all(own.dtype == torch.int64 and own.dim() == 1 for own in columns)
    assert all(len(own) and own.tolist() == sorted(own.tolist()) for own in columns)
    assert sorted(column for own in columns for column in own.tolist()) == list(range(17))
    assert facts(registry.get(name))["reference"]


@pytest.mark.parametrize("name", registry.names())
def test_the_key_alone_decides(name: str) -> None:
    torch.manual_seed(1)
    one = cut(name, 3)
    torch.manual_seed(2)
    assert [own.tolist() for own in one] == [own.tolist() for own in cut(name, 3)]
    others = [[own.tolist() for own in cut(name, 3, seed)] for seed in range(1, 6)]
    assert any(other != [own.tolist() for own in one] for other in others)


@pytest.mark.parametrize("name", registry.names())
def test_more_parties_than_columns_and_no_party_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.clients: 18 was given, and there are 17 columns along axis 1"):
        cut(name, 18)
    with pytest.raises(ConfigError, match=r"data\.clients: at least 1 was needed, 0 was given"):
        cut(name, 0)


@pytest.mark.parametrize("name", TABLES_ONLY)
def test_images_are_refused_by_partitions_of_tables(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.vertical\.name: '{name}' is for tables.*\[5, 1, 4, 4\]; use even"):
        cut(name, 2, x=torch.zeros(5, 1, 4, 4))


@pytest.mark.parametrize("name", ["even", "by_size"])
def test_the_axis_that_is_cut(name: str) -> None:
    images = torch.zeros(5, 3, 6, 8)
    for axis, width in {1: 3, 2: 6, 3: 8, -1: 8, -2: 6, -3: 3}.items():
        assert sum(len(own) for own in cut(name, 2, x=images, axis=axis)) == width
    assert sum(len(own) for own in cut(name, 2, x=images)) == 8  # columns of pixels
    for axis in (0, -4, 4, -5):
        with pytest.raises(ConfigError, match=rf"data\.vertical\.axis: an axis of features was needed.*; {axis} was"):
            cut(name, 2, x=images, axis=axis)


def test_even_parts_are_neighbours_of_equal_number() -> None:
    assert [own.tolist() for own in even(torch.zeros(2, 7), LABELS, 3, root(0))] == [[0, 1, 2], [3, 4], [5, 6]]
    shuffled = even(torch.zeros(2, 7), LABELS, 3, root(0), shuffle=True)
    assert [len(own) for own in shuffled] == [3, 2, 2] and shuffled[0].tolist() != [0, 1, 2]


def test_sizes_as_given() -> None:
    columns = by_size(torch.zeros(2, 7), LABELS, 3, root(0), sizes=(1, 4, 2))
    assert [own.tolist() for own in columns] == [[0], [1, 2, 3, 4], [5, 6]]
    shuffled = by_size(torch.zeros(2, 7), LABELS, 3, root(0), sizes=(1, 4, 2), shuffle=True)
    assert [len(own) for own in shuffled] == [1, 4, 2] and shuffled[1].tolist() != [1, 2, 3, 4]


def test_a_small_alpha_makes_unequal_sizes() -> None:
    def largest(alpha: float) -> float:
        return float(
            np.mean([max(map(len, by_size(torch.zeros(2, 200), LABELS, 4, root(s), alpha=alpha))) for s in range(30)])
        )

    assert largest(1000.0) < 56 < 120 < largest(0.1)


@pytest.mark.parametrize("options", [{"sizes": [8, 9]}, {"sizes": [8, 5, 5]}])
def test_sizes_that_do_not_fit(options: dict[str, Any]) -> None:
    message = r"data\.vertical\.sizes: 3 numbers that add up to 17 columns were needed, \d numbers that add up to 1"
    with pytest.raises(ConfigError, match=message):
        cut("by_size", 3, alpha=None, **options)


@pytest.mark.parametrize("options", [{"alpha": None}, {"alpha": 1.0, "sizes": [5, 6, 6]}])
def test_one_of_sizes_and_alpha_is_needed(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.vertical\.sizes: one of sizes"):
        cut("by_size", 3, **options)
    with pytest.raises(ConfigError, match=r"data\.vertical\.sizes"):
        cut("by_size", 3, alpha=None, sizes=[0, 8, 9])


def test_importance_follows_the_drawn_shares() -> None:
    """The mean share of columns is α_i / Σ α, and its variance that of a Dirichlet number, over many draws."""
    alpha, width = (1.0, 2.0, 5.0), 600
    x = torch.zeros(2, width)
    drawn = np.array([[len(own) for own in importance(x, LABELS, 3, root(s), alpha=alpha)] for s in range(400)]) / width
    total = sum(alpha)
    for i, a in enumerate(alpha):
        variance = a * (total - a) / (total**2 * (total + 1))
        assert drawn[:, i].mean() == pytest.approx(a / total, abs=4 * (variance / 400) ** 0.5 + 3 / width)
        assert drawn[:, i].var() == pytest.approx(variance, rel=0.35)
    assert max(len(own) for own in importance(x, LABELS, 3, root(0), alpha=1e-4)) == width - 2
    many = [len(own) for own in importance(x, LABELS, 3, root(0), alpha=1e6)]
    assert max(many) - min(many) < 70


def test_columns_are_given_out_one_by_one() -> None:
    """A party's columns come from everywhere: no party holds neighbours alone."""
    holder = torch.empty(300, dtype=torch.int64)
    for i, own in enumerate(importance(torch.zeros(2, 300), LABELS, 3, root(1), alpha=100.0)):
        holder[own] = i
    assert (holder[1:] != holder[:-1]).float().mean() == pytest.approx(2 / 3, abs=0.1)


def test_importance_refuses_another_number_of_alphas() -> None:
    with pytest.raises(ConfigError, match=r"data\.vertical\.alpha: one number, or 3 for as many parties.*; 2 were"):
        cut("importance", 3, alpha=[1.0, 2.0])
    for alpha in (0, -1.0, [1.0, 0.0, 1.0]):
        with pytest.raises(ConfigError, match=r"data\.vertical\.alpha"):
            cut("importance", 3, alpha=alpha)


def pcor(block: np.ndarray) -> float:
    values = np.linalg.svd(block)[1]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def icor(x: np.ndarray, columns: list[list[int]]) -> float:
    """By the definition, with pairs of columns one at a time."""
    d = x.shape[1]
    matrix = np.zeros((d, d))
    for a in range(d):
        for b in range(d):
            if len(set(x[:, a])) > 1 and len(set(x[:, b])) > 1:
                matrix[a, b] = stats.spearmanr(x[:, a], x[:, b]).statistic
    terms = []
    for i, own in enumerate(columns):
        between = [pcor(matrix[np.ix_(own, other)]) for j, other in enumerate(columns) if j != i]
        terms.append(sum(between) / len(between) - pcor(matrix[np.ix_(own, own)]))
    return sum(terms) / len(terms)


def test_icor_is_what_its_definition_says() -> None:
    """Of the search's own reckoning, with parties of different size, which are filled up."""
    x = related(width=8)
    columns = [[4, 0, 7], [1, 2, 6], [3, 5]]
    members, sizes = np.array([[4, 0, 7], [1, 2, 6], [3, 5, 8]]), np.array([3, 3, 2])
    padded = np.pad(_spearman(x), (0, 1))
    reckoned = _pcor(padded, sizes, [0, 1, 2], members)
    for i, own in enumerate(columns):
        for j, other in enumerate(columns):
            assert reckoned[i, j] == pytest.approx(pcor(padded[np.ix_(own, other)]), abs=1e-12)
    assert _icor(reckoned) == pytest.approx(icor(x.numpy(), columns), abs=1e-12)
    single = _pcor(padded, np.array([1, 1]), [0, 1], np.array([[0], [1]]))
    assert (single == 0).all()


def test_a_search_knows_the_icor_of_what_it_found() -> None:
    """After many swaps, of which each renews a part of the reckoning."""
    x = related(width=8)
    sizes = np.array([3, 3, 2])
    draws = uniform(root(0), 100, 4, dtype=torch.float64).numpy()
    start = np.array([[4, 0, 7], [1, 2, 6], [3, 5, 8]])
    members, found = _search(np.pad(_spearman(x), (0, 1)), sizes, start, lambda value: value, draws)
    columns = [sorted(row[:size]) for row, size in zip(members.tolist(), sizes.tolist(), strict=True)]
    assert sorted(itertools.chain(*columns)) == list(range(8)) and members.tolist() != start.tolist()
    assert found == pytest.approx(icor(x.numpy(), columns), abs=1e-12)


def related(people: int = 80, width: int = 7) -> Tensor:
    """Two groups of columns, one of the even and one of the odd ones, and a constant."""
    common = normal(root(7), people, 2)
    x = common[:, torch.arange(width) % 2] + 0.5 * normal(root(8), people, width)
    x[:, width - 1] = 3.0
    return x.round(decimals=1)  # ties


def every_partition(width: int, first: int) -> list[list[list[int]]]:
    return [[list(one), sorted(set(range(width)) - set(one))] for one in itertools.combinations(range(width), first)]


def test_correlation_finds_the_least_the_largest_and_what_is_between() -> None:
    x = related()
    all_of_them = sorted(icor(x.numpy(), columns) for columns in every_partition(7, 4))
    assert all_of_them[-1] - all_of_them[0] > 0.4
    for beta in (0.0, 0.3, 0.5, 1.0):
        columns = correlation(x, LABELS, 2, root(0), beta=beta, steps=300)
        assert [len(own) for own in columns] == [4, 3]
        target = (1 - beta) * all_of_them[0] + beta * all_of_them[-1]
        nearest = min(abs(value - target) for value in all_of_them)
        found = icor(x.numpy(), [own.tolist() for own in columns])
        assert abs(found - target) == pytest.approx(nearest, abs=0.02)


def test_beta_zero_keeps_correlated_columns_together() -> None:
    x = related(width=12)[:, :11]
    x = torch.cat([x, normal(fold(root(8), 1), 80, 1)], 1)
    together = correlation(x, LABELS, 2, root(0), beta=0.0, steps=400)
    assert {tuple(own[own < 11].remainder(2).unique().tolist()) for own in together} == {(0,), (1,)}
    apart = correlation(x, LABELS, 2, root(0), beta=1.0, steps=400)
    assert all(own[own < 11].remainder(2).unique().tolist() == [0, 1] for own in apart)


def test_correlation_of_many_parties_improves_on_chance() -> None:
    x = related(width=14)
    values = [
        icor(x.numpy(), [own.tolist() for own in correlation(x, LABELS, 4, root(0), beta=beta, steps=200)])
        for beta in (0.0, 0.5, 1.0)
    ]
    assert values == sorted(values)
    drawn = [icor(x.numpy(), [own.tolist() for own in even(x, LABELS, 4, root(s), shuffle=True)]) for s in range(10)]
    assert values[0] <= min(drawn) and max(drawn) <= values[2]


def test_correlation_refuses_beta_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"data\.vertical\.beta: .*1\.5 was given"):
        cut("correlation", 2, beta=1.5)
