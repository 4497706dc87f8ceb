"""Adaptive warm-up: its formula, its Δ*, and when it ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedopt.data import pool
from fedopt.optimizers import advance, at_server, build, hyper
from fedopt.optimizers.warmup import TABLE, best_star, kappa, rate
from fedopt.registry import ConfigError
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Named

LAYERS = 12
LLAMA = [(32_000, 768)] + LAYERS * ([(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]) + [(768,)] * 25
"""Shapes of a model of 124 M parameters, embedding and head tied."""


def tensor(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(("first", "star", "div", "peak"), [(7.8, 2.55, 100.0, 1e-3), (3.0, 1.0, 5.0, 2.0)])
def test_the_closed_form_is_the_one_of_three_conditions(first: float, star: float, div: float, peak: float) -> None:
    k2 = first * (div - 1) / (peak * (first - star) ** 2)
    k0, k1 = k2 * star**2, 1 / peak - 2 * k2 * star
    for gap in [0.05 * first * i for i in range(1, 24)]:
        wanted = gap / (k0 + k1 * gap + k2 * gap**2)
        assert peak * float(rate(tensor(gap), tensor(first), tensor(star), div)) == pytest.approx(wanted, rel=1e-12)
    gap = tensor(star).requires_grad_()
    at_star = rate(gap, tensor(first), tensor(star), div)
    (slope,) = torch.autograd.grad(at_star, gap)
    assert float(at_star.detach()) == 1.0 and float(slope) == pytest.approx(0.0, abs=1e-12)
    assert float(rate(tensor(first), tensor(first), tensor(star), div)) == pytest.approx(1 / div, rel=1e-12)


def test_the_peak_of_a_known_loss() -> None:
    """Δ_t = 1/t with K_0 = 1e-4, K_1 = 0, K_2 = 1000."""
    etas = [(1 / t) / (1e-4 + 1e3 / t**2) for t in range(1, 10_000)]
    peak = max(range(len(etas)), key=etas.__getitem__)
    assert (
        peak + 1 == 3162 and etas[peak] == pytest.approx(1.5811, abs=1e-4) and etas[0] == pytest.approx(1e-3, rel=1e-3)
    )


def test_kappa() -> None:
    assert kappa("spectral", LLAMA) == 65_280
    assert kappa("max_entry", LLAMA) == 109_510_656
    assert kappa("frobenius", LLAMA) == 85


PUBLISHED = {
    "spectral": [3.64, 3.31, 2.96, 2.62, 2.55, 2.41, 2.26, 1.92],
    "max_entry": [0.65, 0.71, 0.78, 0.83, 0.84, 0.85, 0.86, 0.90],
    "frobenius": [1.66, 1.61, 1.58, 1.53, 1.52, 1.49, 1.47, 1.36],
}


@pytest.mark.parametrize("norm", list(PUBLISHED))
def test_where_warm_up_ends(norm: Any) -> None:
    constant = kappa(norm, LLAMA)
    for target, wanted in zip((0, 1, 2, 3, 3.2, 3.6, 4, 5), PUBLISHED[norm], strict=True):
        star = best_star(11.0 - target, 100.0, 1e-3 * constant)
        assert star == pytest.approx(wanted, abs=0.025), (target, star)
        made = build("warmup", {"of": {"name": "sgd", "lr": 1.0}, "target": target, "steps": 9, "kappa": constant})
        found = made._star(tensor(11.0 - target), {})  # type: ignore[attr-defined]
        assert float(found) == pytest.approx(wanted, abs=0.04), (target, float(found))


@pytest.mark.parametrize(("target", "div", "wanted"), [(4.3, 5.0, 2.205), (4.2, 2.0, 3.448)])
def test_where_warm_up_of_normalised_descent_ends(target: float, div: float, wanted: float) -> None:
    assert best_star(11.0 - target, div, 1e-3 * 85) == pytest.approx(wanted, abs=0.02)


def rates(losses: list[float], **options: Any) -> list[float]:
    """The learning rates that a run of losses gets."""
    given = {"of": {"name": "sgd", "lr": 0.5}, "target": 1.0, "steps": 20, "kappa": 100.0, **options}
    optimizer, params = build("warmup", given), {"x": torch.zeros(1, dtype=torch.float64)}
    state, found = optimizer.init(params), []
    for t, loss in enumerate(losses):
        new, state = optimizer.update(
            {"x": -torch.ones(1, dtype=torch.float64)}, state, params, hyper(optimizer, t), value=tensor(loss)
        )
        found.append(float((new["x"] - params["x"])[0]))
        params = new
    return found


def test_from_a_share_of_the_peak_to_the_peak_and_down_a_cosine() -> None:
    losses = [5.0, 4.5, 4.0, 3.5, 2.0, 6.0, 2.0, 2.0]
    found = rates(losses, delta_star=1.5)
    assert found[0] == 0.5 / 100
    assert found[0] < found[1] < found[2] < found[3] < 0.5
    for t in range(4, 8):  # at t = 4 the gap is 1.0 <= 1.5, for good: later losses do not matter
        wanted = 0.5 * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (t - 4) / 16)))
        assert found[t] == pytest.approx(wanted, rel=1e-12)


def test_the_peak_does_not_move_the_curve() -> None:
    losses = [5.0, 4.0, 3.2, 2.9, 2.0, 1.5]
    small = rates(losses)
    large = rates(losses, of={"name": "sgd", "lr": 50.0})
    assert large == pytest.approx([100 * r for r in small], rel=1e-12)


@pytest.mark.parametrize("losses", [[0.5, 0.4, 0.3], [1.01, 1.0, 0.9], [1.0, 2.0, 3.0], [5.0, 0.5, 5.0]])
def test_losses_at_or_below_the_target_never_give_nan(losses: list[float]) -> None:
    found = rates(losses)
    assert all(math.isfinite(r) and 0 < r <= 0.5 for r in found)
    if losses[0] <= 1.02:
        assert found[0] == pytest.approx(0.5)


def test_a_mean_of_the_losses_does_not_end_warm_up_by_one_of_them() -> None:
    losses = [5.0, 4.9, 1.2, 4.9, 4.9]
    assert rates(losses, delta_star=1.0)[3] > 0.4
    assert rates(losses, delta_star=1.0, ema=0.9)[3] < 0.1


def test_each_client_of_a_cohort_has_its_own() -> None:
    optimizer = build("warmup", {"of": {"name": "sgd", "lr": 1.0}, "target": 0.0, "steps": 10, "kappa": 50.0})
    params = {"x": torch.zeros(3, 2, dtype=torch.float64)}
    state = torch.vmap(optimizer.init)(params)
    values = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64)

    def move(g: Any, s: Any, x: Any, v: Any) -> Any:
        return optimizer.update(g, s, x, hyper(optimizer, 0), value=v)

    _, state = torch.vmap(move)({"x": torch.ones(3, 2, dtype=torch.float64)}, state, params, values)
    assert state["first"].tolist() == [2.0, 4.0, 8.0]
    for i, first in enumerate((2.0, 4.0, 8.0)):
        assert float(state["star"][i]) == pytest.approx(best_star(first, 100.0, 0.05), abs=0.02)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"more than 0\.02 above the target"):
        best_star(0.01, 100.0, 1.0)
    with pytest.raises(ConfigError, match="steps"):
        build("warmup", {"of": {"name": "sgd", "lr": 1.0}, "target": 0.0})
    assert TABLE[0] < 0.1 and TABLE[-1] > 20


def test_at_the_server_it_follows_the_mean_loss_of_the_clients() -> None:
    """Clients of equal size with whole gradients: as on one machine with all samples."""
    federation = small_federation((6, 6, 6))
    problem = small_problem(federation)
    optimizer = build(
        "warmup", {"of": {"name": "sgd", "lr": 0.5}, "target": 0.8, "steps": 12, "delta_star": 0.15, "div": 2.0}
    )
    played = play(problem, compose("fedsgd", server=at_server(optimizer, "server", frozenset({"value"}))), 12)
    pooled = small_problem(pool(federation))
    shards = pooled.data.splits["train"]
    batch = {"x": shards.x[shards.index], "y": shards.y, "mask": torch.ones(18, dtype=torch.bool)}
    params, _ = pooled.unpack(pooled.initial)
    state = optimizer.init(params)

    def oracle(point: Named) -> tuple[Named, torch.Tensor]:
        grads, (loss, _) = torch.func.grad_and_value(
            lambda p: pooled.objective(p, {}, batch, torch.tensor(0)), has_aux=True
        )(point)
        return grads, loss

    for _ in range(12):
        params, state, _, _ = advance(optimizer, oracle, state, params, hyper(optimizer, 0))
    assert 0 < float(state["switched"]) < 11, "both phases were there"
    assert played.params is not None
    torch.testing.assert_close(played.params, pooled.network.spec.flatten(params), rtol=0, atol=1e-12)
