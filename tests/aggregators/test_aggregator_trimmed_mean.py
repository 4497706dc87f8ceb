"""The trimmed mean against a loop, and its precondition."""

from __future__ import annotations

import random

import pytest
import torch

from fedopt.aggregators import _sorting, build
from fedopt.aggregators.trimmed_mean import trimmed_mean
from fedopt.registry import ConfigError
from fedopt.types import FedoptError


def loop(rows: list[list[float]], f: int) -> list[float]:
    result = []
    for j in range(len(rows[0])):
        column = [row[j] for row in rows]
        for _ in range(f):
            column.remove(min(column))
            column.remove(max(column))
        total = 0.0
        for value in column:
            total += value
        result.append(total / len(column))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(1)
    for _ in range(100):
        f = draw.randint(0, 4)
        n, d = draw.randint(2 * f + 1, 2 * f + 8), draw.randint(1, 5)
        # whole numbers, so that there are ties
        rows = [[float(draw.randint(-4, 4)) for _ in range(d)] for _ in range(n)]
        got = trimmed_mean(torch.tensor(rows, dtype=torch.float64), f=f)
        torch.testing.assert_close(got, torch.tensor(loop(rows, f), dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "share", "f"), [(10, 0.1, 1), (10, 0.19, 1), (30, 0.1, 3), (100, 0.29, 29), (7, 0.4, 2), (9, 0.0, 0)]
)
def test_share_is_rounded_down_to_clients(n: int, share: float, f: int) -> None:
    updates = torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert torch.equal(trimmed_mean(updates, share=share), trimmed_mean(updates, f=f))


def test_result_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(9, 101, generator=torch.Generator().manual_seed(0))
    whole = trimmed_mean(updates, f=2)
    monkeypatch.setattr(_sorting, "BLOCK", 64)
    # to rounding: the columns at the end of a block are summed in another order
    torch.testing.assert_close(trimmed_mean(updates, f=2), whole, rtol=1e-6, atol=1e-6)


def test_attackers_up_to_f_cannot_move_it_out_of_the_honest_range() -> None:
    honest = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    for value in (1e30, -1e30):
        delta = trimmed_mean(torch.cat([honest, torch.full((3, 5), value)]), f=3)
        assert bool(((delta >= honest.min(0).values) & (delta <= honest.max(0).values)).all())


def test_too_few_clients_are_refused_with_the_numbers() -> None:
    rule = build("trimmed_mean", {"f": 2})
    assert rule.admits(5) is None
    message = rule.admits(4)
    assert message == (
        "trimmed_mean with f = 2 needs n >= 2f + 1 = 5 clients per exchange, 4 were given;"
        " lower aggregator.f or raise participation.count"
    )
    with pytest.raises(FedoptError, match="needs n >= 2f \\+ 1 = 5 rows, 4 were given"):
        trimmed_mean(torch.ones(4, 2), f=2)


def test_half_is_refused_as_an_option_and_in_a_direct_call() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.share: should be less than 0\.5; 0\.5 was given"):
        build("trimmed_mean", {"share": 0.5})
    with pytest.raises(FedoptError, match="f = 5 needs n >= 2f \\+ 1 = 11 rows, 10 were given"):
        trimmed_mean(torch.ones(10, 2), share=0.5)


@pytest.mark.parametrize("options", [{}, {"f": 1, "share": 0.1}])
def test_one_of_f_and_share_has_to_be_given(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^aggregator: trimmed_mean: give exactly one of f .* and share"):
        build("trimmed_mean", options)


def test_negative_f_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.f: should be greater than or equal to 0; -1 was given"):
        build("trimmed_mean", {"f": -1})
