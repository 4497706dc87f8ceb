"""The adaptive attack: the family and the choice in plain loops, and what it does to several rules."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from fedopt.attacks import build
from fedopt.attacks.adaptive import adaptive
from fedopt.attacks.alie import alie
from fedopt.attacks.ipm import ipm
from fedopt.attacks.optimal_ipm import Outcome
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

Rows = list[list[float]]
KINDS = ("std", "unit", "sign")


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def middle(rows: Rows) -> list[float]:
    result = []
    for column in zip(*rows, strict=True):
        ordered = sorted(column)
        k = len(ordered)
        result.append((ordered[(k - 1) // 2] + ordered[k // 2]) / 2)
    return result


def family(honest: Rows, kinds: tuple[str, ...], magnitudes: list[float]) -> list[tuple[list[float], int]]:
    """Vectors with the number of their direction, in the order in which they are tried."""
    columns = list(zip(*honest, strict=True))
    mean = [sum(column) / len(honest) for column in columns]
    sigma = [
        math.sqrt(sum((x - m) ** 2 for x in column) / len(honest)) for column, m in zip(columns, mean, strict=True)
    ]
    widest = 0.0
    for x in honest:
        for y in honest:
            widest = max(widest, math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True))))
    widest = widest or math.sqrt(dot(mean, mean))
    found = [(mean, -1)]
    for number, kind in enumerate(kinds):
        along = {
            "std": [-s for s in sigma],
            "unit": [-m for m in mean],
            "sign": [float((m < 0) - (m > 0)) for m in mean],
        }[kind]
        length = math.sqrt(dot(along, along))
        if length > 0:
            for magnitude in magnitudes:
                found.append(([m + magnitude * widest * p / length for m, p in zip(mean, along, strict=True)], number))
    return found


def served(honest: Rows, sent: list[float], b: int, limit: float) -> list[float]:
    """A server: the median, pulled a little by each row, so that no two rows do alike; too long ones are dropped."""
    if dot(sent, sent) > limit**2:
        return middle(honest)
    return [x + 0.01 * v for x, v in zip(middle([*honest, *[sent] * b]), sent, strict=True)]


def loop(
    honest: Rows, b: int, limit: float, kinds: tuple[str, ...], magnitudes: list[float], refinements: int
) -> tuple[list[float], bool]:
    """What is sent, and whether a refinement found it."""
    magnitudes = sorted(magnitudes)
    vectors = family(honest, kinds, magnitudes)
    mean = vectors[0][0]

    def score(vector: list[float]) -> float:
        return dot(mean, served(honest, vector, b, limit))

    scores = [score(vector) for vector, _ in vectors]
    place = scores.index(min(scores))
    best, number = vectors[place]
    if place == len(vectors) - 1 or vectors[place + 1][1] != number or number < 0:
        return best, False
    low, high, least = best, vectors[place + 1][0], scores[place]
    for _ in range(refinements):
        between = [(x + y) / 2 for x, y in zip(low, high, strict=True)]
        if score(between) < least:
            low, least = between, score(between)
        else:
            high = between
    return low, low is not best


def test_equals_the_loop_on_random_draws() -> None:
    draw, refined = random.Random(22), 0
    for _ in range(100):
        n, d = draw.randint(2, 15), draw.randint(1, 5)
        b = draw.randint(1, n - 1)
        options = {
            "kinds": tuple(draw.sample(KINDS, draw.randint(1, 3))),
            "magnitudes": [draw.uniform(0.1, 9) for _ in range(draw.randint(1, 4))],
            "refinements": draw.randint(0, 6),
        }
        honest = [[draw.gauss(1, 3) for _ in range(d)] for _ in range(n - b)]
        limit = draw.choice([1e9, draw.uniform(5, 50)])
        wanted, better = loop(honest, b, limit, **options)  # type: ignore[arg-type]
        refined += better

        def outcome(sent: Tensor, honest: Rows = honest, limit: float = limit) -> Tensor:
            return torch.tensor(served(honest, sent[0].tolist(), len(sent), limit), dtype=torch.float64)

        options["directions"] = options.pop("kinds")
        got = adaptive(torch.tensor(honest, dtype=torch.float64), b=b, outcome=outcome, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(got, torch.tensor([wanted] * b, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert 10 < refined < 90


def mean_rule(honest: Tensor) -> Outcome:
    return lambda sent: torch.cat([honest, sent]).mean(dim=0)


def median_rule(honest: Tensor) -> Outcome:
    return lambda sent: torch.cat([honest, sent]).quantile(0.5, dim=0)


def krum_rule(honest: Tensor) -> Outcome:
    def outcome(sent: Tensor) -> Tensor:
        rows = torch.cat([honest, sent])
        distances = torch.cdist(rows, rows).square().fill_diagonal_(torch.inf)
        return rows[distances.sort(dim=1).values[:, : honest.shape[0] - 2].sum(dim=1).argmin()]

    return outcome


@pytest.mark.parametrize("rule", [mean_rule, median_rule, krum_rule])
def test_it_holds_the_server_back_at_least_as_much_as_attacks_that_ignore_the_rule(rule: object) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        honest = torch.randn(7, 30, generator=generator, dtype=torch.float64) + 0.5
        outcome, mean, b = rule(honest), honest.mean(0), 3  # type: ignore[operator]
        along = float(outcome(adaptive(honest, b=b, outcome=outcome)) @ mean)
        for other in (ipm(honest, b=b), alie(honest, b=b, n=10), honest.mean(0).expand(b, -1)):
            assert along <= float(outcome(other) @ mean) + 1e-9


def test_against_the_mean_the_boldest_step_back_is_sent() -> None:
    honest = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    sent = adaptive(honest, b=1, outcome=mean_rule(honest), directions=("unit",), magnitudes=(1.0, 10.0))
    # μ = (2, 2), D = √8, so the candidates are (2, 2), (0, 0) and (-18, -18)
    assert sent[0].tolist() == pytest.approx([-18.0, -18.0])


def test_counts_its_calls() -> None:
    honest, calls = torch.tensor([[1.0, 2.0], [2.0, 1.0]]), []

    def outcome(sent: Tensor) -> Tensor:
        calls.append(sent.shape)
        return mean_rule(honest)(sent)

    adaptive(honest, b=3, outcome=outcome, magnitudes=(1.0, 2.0))
    # against the mean the last magnitude is best, and there is no larger one to refine towards
    assert calls == [(3, 2)] * 7
    calls.clear()
    adaptive(honest, b=3, outcome=lambda sent: outcome(sent) if sent.norm() < 10 else honest[0], refinements=5)
    assert calls.count((3, 2)) <= 1 + 3 * 8 + 5


def test_refines_towards_the_magnitude_that_a_rule_still_follows() -> None:
    # μ = (2, 2), D = √8: candidates (1 - m) μ, followed down to (-10.4, -10.4), which is m = 6.2
    honest = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=torch.float64)

    def outcome(sent: Tensor) -> Tensor:
        return mean_rule(honest)(sent if float(sent.min()) >= -10.4 else honest)

    found = [
        float(adaptive(honest, b=1, outcome=outcome, directions=("unit",), refinements=k)[0, 0]) for k in (0, 2, 30)
    ]
    # 4, then 6, then all of it
    assert found == pytest.approx([-6.0, -10.0, -10.4])


def test_an_aggregate_that_is_no_number_is_never_chosen() -> None:
    honest = torch.tensor([[1.0, 2.0], [2.0, 1.0]])

    def outcome(sent: Tensor) -> Tensor:
        return mean_rule(honest)(sent) if sent.abs().max() < 20 else torch.full((2,), -torch.inf)

    assert float(adaptive(honest, b=3, outcome=outcome).abs().max()) < 20
    lost = adaptive(honest, b=3, outcome=lambda sent: torch.full((2,), torch.nan))
    assert torch.equal(lost, honest.mean(0).expand(3, 2))


@pytest.mark.parametrize("b", [1, 9])
def test_few_or_equal_honest_rows(b: int) -> None:
    for honest in (torch.tensor([[1.0, -2.0]]), torch.ones(4, 2)):
        sent = adaptive(honest, b=b, outcome=mean_rule(honest))
        # no spread: steps are in units of the mean's length
        torch.testing.assert_close(sent, (-63.0 * honest[:1]).expand(b, 2))
    assert not bool(adaptive(torch.zeros(3, 2), b=b, outcome=mean_rule(torch.zeros(3, 2))).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_rows_stay_numbers(dtype: torch.dtype) -> None:
    honest = torch.tensor([[1e30, -1e30], [2e30, 1e30], [0.0, 3e30]], dtype=dtype)
    before = honest.clone()
    sent = adaptive(honest, b=5, outcome=mean_rule(honest))
    assert bool(sent.isfinite().all()) and sent.dtype == dtype and torch.equal(honest, before)


def test_without_an_honest_client_it_says_so() -> None:
    with pytest.raises(FedoptError, match=r"adaptive sees no honest update .* lower the share of attackers"):
        adaptive(torch.zeros(0, 3), b=4, outcome=lambda sent: sent[0])


@pytest.mark.parametrize(
    ("option", "value"), [("directions", []), ("magnitudes", []), ("magnitudes", [0.0]), ("directions", ["cos"])]
)
def test_options_out_of_range_are_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.{option}"):
        build("adaptive", {option: value})
    assert build("adaptive", {"directions": ["unit"], "magnitudes": [1.0]}).knowledge == "omniscient"
