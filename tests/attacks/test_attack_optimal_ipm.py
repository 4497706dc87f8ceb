"""Optimal IPM: the search against one in plain loops, and what it finds where the best factor is known."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt.attacks import build
from fedopt.attacks.ipm import ipm
from fedopt.attacks.optimal_ipm import Outcome, line_search, optimal_ipm
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Rows = list[list[float]]


def trimmed(rows: Rows, f: int) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        column = sorted(row[j] for row in rows)[f : len(rows) - f]
        result.append(sum(column) / len(column))
    return result


def loop(honest: Rows, b: int, f: int, evaluations: int, start: float, step: float, ratio: float) -> list[float]:
    """κ grows by doubling steps while that helps; then shrinking steps are tried from the best one on."""
    mean = [sum(column) / len(honest) for column in zip(*honest, strict=True)]

    def score(kappa: float) -> float:
        moved = trimmed(honest + [[-kappa * m for m in mean]] * b, f)
        return math.sqrt(sum((x - m) ** 2 for x, m in zip(moved, mean, strict=True)))

    best, highest, left = start, score(start), evaluations - 1
    while left > 0:
        left -= 1
        reached = score(best + step)
        if reached <= highest:
            step *= ratio
            break
        best, highest, step = best + step, reached, 2 * step
    while left > 0:
        left -= 1
        reached = score(best + step)
        if reached > highest:
            best, highest = best + step, reached
        step *= ratio
    return [-best * m for m in mean]


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(8)
    for _ in range(100):
        n, d = draw.randint(5, 15), draw.randint(1, 4)
        b = draw.randint(1, n - 2)
        f = draw.randint(0, (n - 1) // 2)
        honest = [[draw.gauss(1, 3) for _ in range(d)] for _ in range(n - b)]
        options = {"evaluations": draw.randint(1, 12), "start": draw.uniform(0, 1), "ratio": draw.uniform(0.55, 0.9)}
        # from step sizes without a pattern, so that no two trials tie
        options["step"] = draw.uniform(0.1, 2)
        rows = torch.tensor(honest, dtype=torch.float64)

        def outcome(sent: Tensor, rows: Tensor = rows, f: int = f) -> Tensor:
            return torch.tensor(trimmed(torch.cat([rows, sent]).tolist(), f), dtype=torch.float64)

        got = optimal_ipm(rows, b=b, outcome=outcome, **options)  # type: ignore[arg-type]
        wanted = loop(honest, b, f, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.tensor([wanted] * b, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def mean_of(honest: Tensor) -> Outcome:
    return lambda sent: torch.cat([honest, sent.to(honest)]).mean(dim=0)


def guarded(honest: Tensor, limit: float) -> Outcome:
    """The mean, without rows longer than `limit`."""

    def outcome(sent: Tensor) -> Tensor:
        rows = torch.cat([honest, sent])
        return rows[rows.norm(dim=1) <= limit].mean(dim=0)

    return outcome


def test_finds_the_largest_factor_that_a_bound_on_lengths_lets_through() -> None:
    honest = torch.tensor([[3.0, 4.0], [3.0, 4.0]], dtype=torch.float64)
    sent = optimal_ipm(honest, b=1, outcome=guarded(honest, 35.0), evaluations=60)
    assert float(sent.norm()) == pytest.approx(35.0, rel=1e-3)
    assert float(sent.norm()) <= 35.0


def test_moves_the_server_at_least_as_far_as_fixed_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    for limit in (9.0, 15.0, 30.0):
        honest = torch.randn(6, 3, generator=generator, dtype=torch.float64) + 2.0
        outcome = guarded(honest, limit)
        gaps = [
            float((outcome(sent) - honest.mean(0)).norm())
            for sent in (
                optimal_ipm(honest, b=3, outcome=outcome, evaluations=60),
                *(ipm(honest, b=3, kappa=kappa) for kappa in (0.5, 1.0)),
            )
        ]
        assert gaps[0] >= max(gaps[1:]) * 0.99


def test_counts_its_calls_and_stays_below_most() -> None:
    honest, calls = torch.ones(4, 2), []

    def outcome(sent: Tensor) -> Tensor:
        calls.append(sent.shape)
        return mean_of(honest)(sent)

    sent = optimal_ipm(honest, b=3, outcome=outcome, evaluations=7, most=4.0)
    assert calls == [(3, 2)] * 7
    # on the plain mean more is always better
    assert sent.tolist() == [[-4.0, -4.0]] * 3
    assert optimal_ipm(honest, b=3, outcome=mean_of(honest), evaluations=1).abs().max() == 0.0


def test_an_aggregate_that_is_no_number_is_never_chosen() -> None:
    honest = torch.ones(4, 2)

    def outcome(sent: Tensor) -> Tensor:
        return torch.full((2,), torch.inf if sent.abs().max() > 15 else -float(sent.abs().max()))

    assert float(optimal_ipm(honest, b=2, outcome=outcome, evaluations=30).abs().max()) <= 15
    nan = optimal_ipm(honest, b=2, outcome=lambda sent: torch.full((2,), torch.nan), evaluations=5)
    assert not bool(nan.any())


def test_the_search_keeps_what_was_best() -> None:
    tried: list[float] = []

    def score(at: float) -> float:
        tried.append(at)
        return -((at - 4.9) ** 2)

    best = line_search(score, start=0.0, step=1.0, ratio=0.5, evaluations=7, most=None)
    # 0, then steps 1 (better), 2 (better), 4 (worse), 2 (better, but shrinking from now on), 1 (worse), 1/2 (worse)
    assert tried == [0.0, 1.0, 3.0, 7.0, 5.0, 6.0, 5.5] and best == 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    honest = torch.full((4, 3), 1e30, dtype=dtype)
    sent = optimal_ipm(honest, b=5, outcome=mean_of(honest))
    assert bool(sent.isfinite().all()) and sent.dtype == dtype and bool((honest == 1e30).all())


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"optimal_ipm sees no honest update .* lower the share of attackers"):
        optimal_ipm(torch.zeros(0, 3), b=4, outcome=lambda sent: sent[0])


@pytest.mark.parametrize(
    ("option", "value"), [("ratio", 1.0), ("evaluations", 0), ("step", 0.0), ("start", -1.0), ("most", 0.0)]
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}: should be"):
        build("optimal_ipm", {option: value})
