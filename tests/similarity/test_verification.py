"""What the literature and independent computations say of methods under data similarity, on quadratics."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from tests.similarity.quadratics import groups, nodes, play, solution

SEEDS = range(5)
EXACT, RANDOM = 0.15, 0.40
"""Counts may differ by such shares from the stated ones: of methods without, and with, chance."""

TABLE = [(0.5, 0.5), (0.5, 2.0), (0.5, 8.0), (0.5, 32.0), (2.0, 8.0), (0.125, 8.0)]


def near(found: float, stated: float, share: float) -> None:
    assert abs(found - stated) <= share * stated, f"{found:.1f} in place of {stated}"


def counts(name: str, pair: tuple[float, float], gap: float, **options: Any) -> tuple[float, float]:
    """(rounds with f, rounds with g), mean of 5 instances."""
    runs = [play(groups(name, *pair, seed, **options), gap=gap) for seed in SEEDS]
    assert all(run.gap <= gap for run in runs)
    return mean(r.state.counted.rounds_f for r in runs), mean(r.state.counted.rounds_g for r in runs)


def test_the_instances_are_as_stated() -> None:
    setup = nodes("aeg")
    a, _, _ = solution(setup)
    each = setup.problem.data.splits["train"].x[:, :, :-1]
    assert float(torch.linalg.matrix_norm(each - a, 2).max()) == pytest.approx(2.07, rel=0.1)
    values = torch.linalg.eigvalsh(a)
    assert float(values[0]) == pytest.approx(0.1)
    assert float(values[-1]) == pytest.approx(100.0)
    setup = groups("aeg", 0.5, 8.0)
    server = setup.problem.data.server
    for split, sample, size in (("trial", 0, 0.5), ("rare", 1, 8.0)):
        change = server[split].x[0, :, :-1] - setup.problem.data.splits["train"].x[sample, :, :-1]
        assert float(torch.linalg.matrix_norm(change, 2)) == pytest.approx(size)


def test_accelerated_gradient_descent() -> None:
    rounds = [play(nodes("agd", seed), distance=1e-10).state.counted.rounds_f for seed in SEEDS]
    near(mean(rounds), 417, EXACT)


def test_aeg() -> None:
    near(mean(play(nodes("aeg", seed), distance=1e-10).state.counted.rounds_f for seed in SEEDS), 186, EXACT)


@pytest.mark.parametrize(("lam", "iterations"), [(1.0, 82), (2.0, 122), (4.0, 177)])
def test_aeg_by_estimating_sequences(lam: float, iterations: int) -> None:
    found = mean(
        play(nodes("aeg", seed, form="estimating", lam=lam), distance=1e-10).state.counted.rounds_f for seed in SEEDS
    )
    near(found / 2, iterations, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "rounds"), list(zip(TABLE, [146, 214, 452, 950, 506, 416], strict=True)), ids=lambda v: str(v)
)
def test_joint_aeg(pair: tuple[float, float], rounds: int) -> None:
    f, g = counts("aeg", pair, 1e-10)
    assert abs(f - g) <= 1
    near(f, rounds, EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "stated"),
    list(zip(TABLE, [(98, 294), (86, 510), (94, 1220), (96, 2684), (212, 1272), (36, 968)], strict=True)),
    ids=str,
)
def test_c_aeg(pair: tuple[float, float], stated: tuple[int, int]) -> None:
    found = counts("c_aeg", pair, 1e-10)
    near(found[0], stated[0], EXACT)
    near(found[1], stated[1], EXACT)


PAIRS = [(0.5, 0.5), (0.5, 2.0), (0.5, 8.0), (2.0, 8.0)]
VRCS = {
    ("acc_vrcs", 8): [(545, 545), (501, 2866), (492, 44448), (1427, 8319)],
    ("acc_vrcs", 2): [(187, 201), (216, 1227), (240, 19429), (608, 3437)],
    ("vrcs", 2): [(253, 248), (210, 1738), (252, 30435), (935, 8305)],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "c", "pair", "stated"),
    [(name, c, pair, stated) for (name, c), rows in VRCS.items() for pair, stated in zip(PAIRS, rows, strict=True)],
    ids=str,
)
def test_variance_reduction(name: str, c: int, pair: tuple[float, float], stated: tuple[int, int]) -> None:
    found = counts(name, pair, 1e-8, c=c)
    near(found[0], stated[0], RANDOM)
    near(found[1], stated[1], RANDOM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "stated"),
    list(zip(TABLE[:5], [(94, 93), (95, 401), (79, 1349), (88, 4830), (381, 1550)], strict=True)),
    ids=str,
)
def test_hasca(pair: tuple[float, float], stated: tuple[int, int]) -> None:
    found = counts("hasca", pair, 1e-8)
    near(found[0], stated[0], RANDOM)
    near(found[1], stated[1], RANDOM)


@pytest.mark.slow
def test_rounds_with_f_do_not_grow_with_the_distance_of_g() -> None:
    """64 times δ_g for C-AEG, 16 times for the others; rounds with g like its square root, and like its square."""
    sizes = (0.5, 2.0, 8.0, 32.0)
    found = np.array([counts("c_aeg", (0.5, g), 1e-10) for g in sizes])
    assert np.ptp(found[:, 0]) <= EXACT * found[:, 0].min()
    slope = np.polyfit(np.log(sizes), np.log(found[:, 1]), 1)[0]
    assert abs(slope - 0.5) <= 0.1
    for name in ("acc_vrcs", "vrcs"):
        found = np.array([counts(name, (0.5, g), 1e-8) for g in sizes[:3]])
        assert np.ptp(found[:, 0]) <= RANDOM * found[:, 0].min()
        slope = math.log(found[2, 1] / found[1, 1]) / math.log(4.0)
        assert abs(slope - 2.0) <= 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("pair"), [(0.5, 0.5), (0.5, 2.0), (0.5, 8.0), (0.5, 32.0), (2.0, 8.0)], ids=str)
def test_sc_aeg_comes_to_a_neighbourhood(pair: tuple[float, float]) -> None:
    floors = {}
    for factor in (1 / 4, 1 / 16, 1 / 64):
        runs = [play(groups("sc_aeg", *pair, seed, factor=factor), rounds=4000) for seed in SEEDS]
        floors[factor] = mean(run.floor for run in runs)
    assert math.isfinite(floors[1 / 16])
    assert floors[1 / 64] < floors[1 / 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "c", "epochs", "inner"), [("svrs", 8, 396, 7608), ("svrs", 2, 93, 1923), ("acc_svrs", 8, 128, 2821)]
)
def test_sliding_over_clients(name: str, c: int, epochs: int, inner: int) -> None:
    states = [play(nodes(name, seed, c=c), distance=1e-10).state.own for seed in SEEDS]
    near(mean(own.epochs for own in states), epochs, RANDOM)
    near(mean(own.inner for own in states), inner, RANDOM)


@pytest.mark.slow
def test_olga() -> None:
    codec = {"name": "randk", "share": 0.2}
    states = [play(nodes("olga", seed, codec), distance=1e-10).state for seed in SEEDS]
    near(mean(state.own.epochs for state in states), 137, RANDOM)
    near(mean(state.own.inner for state in states), 704, RANDOM)
    own = states[0].own
    # two whole rounds an epoch, and codes of 6 numbers and a few bytes within
    wanted = 2 * own.epochs + own.inner / 5
    assert wanted <= states[0].counted.time <= 1.25 * wanted


@pytest.mark.slow
def test_ef_olga() -> None:
    codec = {"name": "topk", "share": 0.2, "feedback": "ef14"}
    own = play(nodes("ef_olga", 0, codec), distance=1e-10).state.own
    near(own.epochs, 3988, RANDOM)
    near(own.inner, 20003, RANDOM)


@pytest.mark.slow
def test_svrp() -> None:
    states = [play(nodes("svrp", seed, passes=15), distance=1e-10).state for seed in SEEDS[:3]]
    near(mean(state.counted.rounds_f for state in states), 9_187 * 21 / 20, RANDOM)
    near(mean(state.counted.messages for state in states), 46_600, RANDOM)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "outer", "messages"), [(1, 56, 15_500), (2, 32, 15_600), (4, 23, 20_600)])
def test_catalyzed_svrp(k: int, outer: int, messages: int) -> None:
    states = [
        play(nodes("catalyzed_svrp", seed, gamma=0.363, k=k, passes=15), distance=1e-10).state for seed in SEEDS[:3]
    ]
    near(mean(state.own.outer for state in states), outer, RANDOM)
    near(mean(state.counted.messages for state in states), messages, RANDOM)


@pytest.mark.slow
def test_noise_and_batches_of_aseg() -> None:
    """The floor is proportional to σ², and grows as fewer nodes are asked; a smaller step lowers it."""

    def floor(**options: Any) -> float:
        return play(nodes("aseg", 0, **options), rounds=2000).floor

    floors = [floor(noise=sigma) for sigma in (0.1, 1.0)]
    assert floors[1] / floors[0] == pytest.approx(100.0, rel=0.05)
    batches = [floor(take=take) for take in (15, 10, 5)]
    assert batches[0] < batches[1] < batches[2]
    assert floor(noise=1.0, factor=1 / 16) < floors[1]
