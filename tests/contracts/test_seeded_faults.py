"""Faults seen in well-known code, written again on purpose: each has to be caught.

A fault is caught by the contract check, by the discriminating fixture, or by an oracle in plain loops; each test says
by which. The same call passes for the right code, so that it is the fault that is caught.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import aggregators, attacks, keys, models
from fedopt.aggregators._distances import sq_distances
from fedopt.aggregators.krum import krum
from fedopt.aggregators.trimmed_mean import trimmed_mean
from fedopt.attacks.alie import alie
from fedopt.problem import Network
from fedopt.registry import ConfigError, declare
from fedopt.testing import check_aggregator, discriminating
from fedopt.testing.aggregators import apply

Function = Callable[..., Tensor]

# An unknown option that is silently ignored: an undefended run that looks defended.


@pytest.mark.parametrize(("name", "options"), [("krum", {"F": 2}), ("trimmed_mean", {"F": 2})])
def test_an_unknown_option_is_refused_with_the_known_ones(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.F: unknown option\..*Options: f: int"):
        aggregators.build(name, options)


def test_a_capital_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'f'\?"):
        aggregators.build("krum", {"F": 2})


def test_a_misspelt_option_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.shares: unknown option\. Did you mean 'share'\?"):
        aggregators.build("trimmed_mean", {"shares": 0.1})


# Mean, median and trimmed mean tested on one symmetric fixture: the three could be swapped.

CENTRES: dict[str, Function] = {
    "mean": lambda updates: updates.mean(dim=0),
    "median": lambda updates: updates.quantile(0.5, dim=0),
    "trimmed mean": lambda updates: trimmed_mean(updates, f=2),
}


def test_a_symmetric_fixture_is_blind() -> None:
    symmetric = torch.arange(-5.0, 6.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    for centre in CENTRES.values():
        assert torch.allclose(centre(symmetric), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["mean", "median"])
def test_a_swapped_trimmed_mean_is_caught_by_the_discriminating_fixture(name: str) -> None:
    case = discriminating()
    right = apply(aggregators.build("trimmed_mean", {"f": 2}), case)
    assert torch.allclose(CENTRES["trimmed mean"](case.updates), right)
    assert not torch.allclose(CENTRES[name](case.updates), right, rtol=1e-3)


def test_a_mean_without_weights_is_caught_by_the_fixture_and_by_the_linear_law() -> None:
    @declare(scope="linear")
    def mean(updates: Tensor, *, weights: Tensor) -> Tensor:
        return updates.mean(dim=0)

    case = discriminating()
    assert not torch.allclose(apply(aggregators.lift(mean, {}), case), apply(aggregators.build("mean", {}), case))
    with pytest.raises(AssertionError, match="breaks the law 'scope': declared linear"):
        check_aggregator(mean)


# ALIE with another behaviour in every repository: an oracle in plain loops tells them apart.


def published_alie(rows: list[list[float]], b: int, n: int) -> list[float]:
    """Algorithm 3, with Φ⁻¹ found by walking up Φ."""
    s = int(n / 2 + 1) - b
    z = -5.0
    while (1 + math.erf(z / math.sqrt(2))) / 2 < (n - b - s) / (n - b):
        z += 1e-4
    sent = []
    for j in range(len(rows[0])):
        mu = sum(row[j] for row in rows) / len(rows)
        sent.append(mu + z * math.sqrt(sum((row[j] - mu) ** 2 for row in rows) / len(rows)))
    return sent


def follows_the_paper(attack: Function) -> bool:
    draw = random.Random(7)
    for _ in range(20):
        n = draw.randint(8, 25)
        b = draw.randint(2, n // 2 - 1)
        honest = torch.tensor([[draw.gauss(2, 3) for _ in range(3)] for _ in range(n - b)], dtype=torch.float64)
        wanted = torch.tensor([published_alie(honest.tolist(), b, n)] * b, dtype=torch.float64)
        if not torch.allclose(attack(honest, b=b, n=n), wanted, rtol=0.0, atol=2e-3):
            return False
    return True


def shifted_by(
    argument: Callable[[int, int, int], float],
    of: Callable[[float], float] = lambda p: float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64))),
    deviation: Callable[[Tensor], Tensor] = lambda rows: rows.std(dim=0, correction=0),
    sign: float = 1.0,
) -> Function:
    def attack(honest: Tensor, *, b: int, n: int) -> Tensor:
        z = of(argument(n, b, math.floor(n / 2 + 1) - b))
        return (honest.mean(dim=0) + sign * z * deviation(honest)).expand(b, -1)

    return attack


def published_argument(n: int, b: int, s: int) -> float:
    return (n - b - s) / (n - b)


ALIE_FAULTS: dict[str, Function] = {
    "normal cdf where its inverse is needed": shifted_by(
        published_argument, of=lambda p: (1 + math.erf(p / math.sqrt(2))) / 2
    ),
    "root of the deviation": shifted_by(
        published_argument, deviation=lambda rows: rows.std(dim=0, correction=0).sqrt()
    ),
    "variance in place of the deviation": shifted_by(
        published_argument, deviation=lambda rows: rows.var(dim=0, correction=0)
    ),
    "n - 1 in the deviation": shifted_by(published_argument, deviation=lambda rows: rows.std(dim=0)),
    "quantile of all clients": shifted_by(lambda n, b, s: (n - s) / n),
    "quantile of the other end": shifted_by(lambda n, b, s: s / (n - b)),
    "other side of the mean": shifted_by(published_argument, sign=-1.0),
    "majority counted without rounding": shifted_by(lambda n, b, s: (n - b - (n / 2 + 1 - b)) / (n - b)),
}


def test_alie_follows_the_paper() -> None:
    assert follows_the_paper(alie)
    assert follows_the_paper(shifted_by(published_argument))


@pytest.mark.parametrize("fault", ALIE_FAULTS)
def test_a_wrong_alie_is_caught_by_the_oracle(fault: str) -> None:
    assert not follows_the_paper(ALIE_FAULTS[fault])


# Krum that squares distances twice, sums for m > 1, or loses its distances to cancellation.


def krum_from(distances: Callable[[Tensor], Tensor], total: bool = False) -> Function:
    @declare(scope="vector", requires="n >= 2f + 3", admits=lambda n, f: n >= 2 * f + 3)
    def faulty_krum(updates: Tensor, *, f: int, m: int = 1) -> Tensor:
        sq = distances(updates).clone().fill_diagonal_(torch.inf)
        scores = sq.topk(updates.shape[0] - f - 2, dim=1, largest=False).values.sum(dim=1)
        best = updates[scores.argsort(stable=True)[:m]]
        return best.sum(dim=0) if total else best.mean(dim=0)

    return faulty_krum


def published_krum(rows: list[list[float]], f: int) -> list[float]:
    def score(i: int) -> float:
        sq = sorted(sum((a - b) ** 2 for a, b in zip(rows[i], other, strict=True)) for other in rows)
        return sum(sq[1 : len(rows) - f - 1])  # the row itself is at distance 0

    return rows[min(range(len(rows)), key=score)]


def agrees_with_krum(rule: Function) -> bool:
    generator = torch.Generator().manual_seed(8)
    for _ in range(50):
        updates = torch.randn(9, 3, generator=generator, dtype=torch.float64).exp()
        if rule(updates, f=2).tolist() != published_krum(updates.tolist(), 2):
            return False
    return True


def test_krum_follows_the_paper() -> None:
    assert agrees_with_krum(krum)
    assert agrees_with_krum(krum_from(sq_distances))
    check_aggregator(krum_from(sq_distances), f=2, m=3)


def test_distances_squared_twice_are_caught_by_the_oracle() -> None:
    assert not agrees_with_krum(krum_from(lambda updates: sq_distances(updates).square()))


def test_distances_not_squared_are_caught_by_the_oracle() -> None:
    assert not agrees_with_krum(krum_from(lambda updates: sq_distances(updates).sqrt()))


def test_a_sum_in_place_of_the_mean_is_caught_by_the_translation_law() -> None:
    with pytest.raises(AssertionError, match="breaks the law 'translation'"):
        check_aggregator(krum_from(sq_distances, total=True), f=2, m=3)


def product_form(updates: Tensor) -> Tensor:
    sq_norms = updates.square().sum(dim=1)
    return sq_norms[:, None] + sq_norms - 2.0 * updates @ updates.T


def test_product_form_in_float32_is_negative_where_the_rows_nearly_coincide() -> None:
    generator = torch.Generator().manual_seed(9)
    updates = 100.0 + 1e-3 * torch.randn(12, 50, generator=generator)
    assert float(product_form(updates).min()) < 0.0
    off_diagonal = sq_distances(updates)[~torch.eye(12, dtype=torch.bool)]
    assert float(off_diagonal.min()) > 0.0


def test_product_form_in_float32_is_caught_by_the_translation_law() -> None:
    with pytest.raises(AssertionError, match="breaks the law 'translation'"):
        check_aggregator(krum_from(product_form), f=2)


# Trimmed mean at one half, which averages an empty slice.


def test_one_half_is_refused_with_the_numbers_and_gives_no_nan() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.share: should be less than 0\.5; 0\.5 was given"):
        aggregators.build("trimmed_mean", {"share": 0.5})
    for n in range(1, 12):
        assert bool(torch.isfinite(trimmed_mean(torch.ones(n, 2), share=0.4999)).all())


def test_an_empty_slice_is_caught_by_the_check() -> None:
    @declare(scope="coordinate")
    def unguarded(updates: Tensor, *, share: float) -> Tensor:
        n = updates.shape[0]
        f = int(share * n)
        return updates.sort(dim=0).values[f : n - f].mean(dim=0)

    check_aggregator(unguarded, share=0.25)
    with pytest.raises(AssertionError, match="not finite"):
        check_aggregator(unguarded, share=0.5)


# An attack that asks which class the defence is.


def test_an_attack_is_not_told_which_the_defence_is() -> None:
    def tailored(honest: Tensor, *, b: int, rule: Any) -> Tensor:
        return honest[:b] * (2.0 if rule == "krum" else 5.0)

    def typed(honest: Tensor, *, b: int, aggregator: Any) -> Tensor:
        return honest[:b] * (2.0 if type(aggregator).__name__ == "krum" else 5.0)

    for offer in attacks.OFFERS:
        assert offer not in ("rule", "aggregator", "strategy", "state")
    with pytest.raises(ConfigError, match=r"attack\.rule: missing"):
        attacks.lift(tailored, {})
    with pytest.raises(ConfigError, match=r"attack\.aggregator: missing"):
        attacks.lift(typed, {})


def test_only_an_omniscient_attack_may_try_out_the_server() -> None:
    @declare(knowledge="colluders")
    def trying(own: Tensor, *, outcome: Any) -> Tensor:
        return -outcome(own).expand_as(own).clone()

    with pytest.raises(ConfigError, match=r"attack\.name: trying asks for outcome, which only an omniscient"):
        attacks.lift(trying, {})


# torch.median takes the lower of the two middle values, NumPy their mean.


def test_the_lower_median_is_caught_by_the_oracle() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    lower = rows.median(dim=0).values
    right = aggregators.build("median", {}).apply(rows, ())[0]
    assert right.tolist() == [2.0] and lower.tolist() == [1.0]


# Perturbations re-seeded for every tensor: equal shapes get equal noise.


class Twins(torch.nn.Module):
    """Two dropouts over equal shapes; their masks are the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.first, self.second = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first(x), self.second(x)]) * self.scale


def test_equal_shapes_get_unequal_noise() -> None:
    module = Twins()
    assert models.key_dropout(module) == 2
    network, values = Network.of(module)
    params = network.spec.unflatten(values["params"])
    first, second = network.train(params, {}, torch.ones(64), keys.root(1))[0]
    assert not torch.equal(first, second)
    # one key for both layers is the fault; the comparison sees it
    shared = {name: keys.root(1) for name in network.dropout}
    first, second = torch.func.functional_call(network.training, {**params, **shared}, (torch.ones(64),))
    assert torch.equal(first, second)
