"""The verification figures: ridge by columns over parties, against the closed form.

Figures were checked on the same toy problem; a run may be ten times as far from the solution.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.compressed import Compressed
from fedopt.compression import build, feedback
from fedopt.engine.adversary import Adversary
from fedopt.engine.loop import exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.engine.serial import Serial
from fedopt.strategies.egvfl import egvfl
from fedopt.strategies.egvfl_reference import egvfl_reference
from fedopt.strategies.vertical_gd import vertical_gd
from fedopt.testing.strategies import Played, play
from fedopt.types import Codec, Strategy
from tests.vfl.toy import LAM, Toy, toy

NONE = build("none", {"dtype": "float64"})
PLAIN: dict[str, Any] = {"l2": LAM, "normalise": False}
TEN = 10.0
"""How far from a figure a run may be."""


def smooth(t: Toy) -> float:
    """L_F = 1 + sqrt(1 + λ_max)."""
    return 1.0 + float(torch.linalg.matrix_norm(t.a, 2).square() + 1.0) ** 0.5


def held(played: Played) -> Tensor:
    return played.memory.of(torch.arange(played.problem.clients))["weights"]


def along(t: Toy, strategy: Strategy, rounds: int) -> list[float]:
    """The relative gap after 0, 1 ... iterations."""
    key, everybody = keys.root(1), torch.arange(t.problem.clients)
    memory = ClientMemory(strategy.programs(t.problem).memory, t.problem.clients)
    state = strategy.init(t.problem, keys.fold(key, "init"))
    found = [t.gap(memory.of(everybody)["weights"])]
    for step in exchanges(t.problem, strategy, Serial(), Adversary(), memory, state, key):
        if step.state.round == len(found):
            found.append(t.gap(memory.of(everybody)["weights"]))
        if step.state.round == rounds:
            break
    return found


def compressed(strategy: Strategy, codec: Codec, how: str = "none") -> Strategy:
    return Compressed(strategy, codec, feedback.build(how, {}), ("change",))


def test_a_hundred_iterations() -> None:
    t = toy()
    assert smooth(t) == pytest.approx(9.32, abs=0.01), "the figures are for this problem"
    early = play(t.problem, egvfl(step=0.5 / smooth(t), **PLAIN), 100)
    assert 5.4e-4 / TEN < t.gap(held(early)) < 5.4e-4 * TEN


@pytest.mark.slow
def test_the_solution_in_closed_form() -> None:
    t = toy()
    strategy = egvfl(step=0.5 / smooth(t), **PLAIN)
    late = play(t.problem, strategy, 3000)
    assert float((t.weights(held(late)) - t.x).abs().max()) < 4e-15 * TEN
    assert float((late.state.v["y"] - t.y).abs().max()) < 1.4e-14 * TEN
    assert float((late.state.a - late.state.v["z"]).abs().max()) < 4e-16 * TEN


@pytest.mark.parametrize(("parties", "cut"), [(1, "even"), (2, "even"), (5, "shuffled"), (20, "even"), (3, "uneven")])
def test_the_number_of_parties_changes_nothing(parties: int, cut: str) -> None:
    wanted, t = toy(4), toy(parties, cut=cut)
    strategy = egvfl(step=0.05, **PLAIN)
    one, other = play(wanted.problem, strategy, 150), play(t.problem, strategy, 150)
    assert float((wanted.weights(held(one)) - t.weights(held(other))).abs().max()) < 2e-15 * TEN
    assert float((one.state.v["y"] - other.state.v["y"]).abs().max()) < 1e-14 * TEN


def test_without_memory_of_a_reference_it_is_extragradient() -> None:
    t, step = toy(), 0.05
    plain = play(t.problem, egvfl(step=step, **PLAIN), 60)
    always = play(t.problem, egvfl_reference(NONE, step=step, refresh=1.0, **PLAIN), 60)
    assert float((held(plain) - held(always)).abs().max()) < 9e-16 * TEN
    assert float((plain.state.v["y"] - always.state.y).abs().max()) < 9e-15 * TEN


VARIANTS: dict[str, tuple[dict[str, Any], Any, str, int, float]] = {
    # options, codec of what parties send (and the broadcast's), feedback, iterations, figure
    "not compressed": ({"refresh": 0.5}, None, "none", 5000, 3e-18),
    "30 of 60": ({}, ("randk", {"count": 30}), "none", 5000, 3e-18),
    "12 of 60": ({}, ("randk", {"count": 12}), "none", 5000, 7e-8),
    "6 of 60": ({}, ("randk", {"count": 6}), "none", 5000, 6e-6),
    "shares of a permutation": ({"up": True}, ("permk", {"n": 4}), "none", 5000, 1e-9),
    "top half with feedback": ({}, ("topk", {"share": 0.5}), "ef14", 20000, 1e-18),
    "top fifth with feedback": ({}, ("topk", {"share": 0.2}), "ef14", 20000, 1e-10),
    "one party": ({"take": 1}, None, "none", 20000, 4e-18),
    "12 rows of 60": ({"rows": 0.2}, None, "none", 20000, 1e-17),
    "6 rows of 60": ({"rows": 0.1}, None, "none", 20000, 6e-12),
}
ROUNDING = 1e-17
"""Below that, a gap is the rounding of its own computation."""


def variant(name: str) -> tuple[Strategy, int, float]:
    options, asked, how, rounds, figure = VARIANTS[name]
    options = dict(options)
    up = options.pop("up", False)
    if asked is None:
        return egvfl_reference(NONE, **options, **PLAIN), rounds, figure
    codec = build(*asked)
    inner = egvfl_reference(codec, None if up else codec, **options, **PLAIN)
    return compressed(inner, codec, how), rounds, figure


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_converges_as_far_as_it_should(name: str) -> None:
    t = toy()
    strategy, rounds, figure = variant(name)
    found = along(t, strategy, rounds)[-1]
    print(f"{name}: {found:.2g} after {rounds}, {figure:.2g} stated")
    assert found < max(figure * TEN, ROUNDING)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in ("top fifth with feedback", "6 of 60")])
def test_every_variant_comes_nearer(name: str) -> None:
    t = toy()
    strategy, _, _ = variant(name)
    found = along(t, strategy, 300)
    assert found[300] < 0.3 * found[20]


@pytest.mark.slow
def test_compressed_descent_stalls_where_the_saddle_form_converges() -> None:
    t, codec = toy(), build("randk", {"share": 0.2})
    step = 0.02 / float(torch.linalg.matrix_norm(t.a, 2).square())
    naive = Compressed(vertical_gd(codec, step=step, **PLAIN), codec, feedback.build("none", {}), ("moved",))
    late = along(t, naive, 4500)[4000::50]  # it goes to and fro
    mean = sum(late) / len(late)
    print(f"stalls at {min(late):.2g} to {max(late):.2g}")
    assert 5e-3 / 2 < mean < 2.5e-2 * 2
    assert along(t, compressed(egvfl_reference(codec, codec, **PLAIN), codec), 20000)[-1] < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "rounds", "figure"),
    [
        ({"form": "augmented", "rho": 0.1}, 6000, 5e-15),
        ({"form": "augmented", "rho": 1.0}, 6000, 3e-10),
        ({"form": "dual"}, 3000, 3e-15),
        ({"form": "split"}, 8000, 1e-12),
    ],
    ids=lambda value: str(value),
)
def test_other_forms_have_the_same_solution(options: dict[str, Any], rounds: int, figure: float) -> None:
    t = toy()
    played = play(t.problem, egvfl(**options, **PLAIN), rounds)
    found = float((t.weights(held(played)) - t.x).abs().max())
    print(f"{options}: {found:.2g}, {figure:.2g} stated")
    assert found < figure * TEN
    if options["form"] == "split":
        y = played.state.v["y"]
        assert float((y - y.mean(dim=0)).abs().max()) < 5e-13 * TEN


def steps_to(t: Toy, strategy: Strategy, goal: float, most: int) -> int | None:
    """The first iteration after which the relative gap is below `goal`."""
    return next((number for number, gap in enumerate(along(t, strategy, most)) if gap <= goal), None)


@pytest.mark.slow
def test_extragradient_feels_the_square_root_of_the_scale() -> None:
    for factor, stated, descent in ((1, 105, 386), (2, 186, 450), (4, 311, 469), (8, 525, 475)):
        t = toy(factor=factor)
        found = steps_to(t, egvfl(step=0.9 / smooth(t), **PLAIN), 1e-6, 1200)
        largest = float(torch.linalg.matrix_norm(t.a, 2).square()) + LAM
        plain = steps_to(t, vertical_gd(step=1.0 / largest, **PLAIN), 1e-6, 1200)
        print(f"A times {factor}: {found} iterations ({stated}), gradient descent {plain} ({descent})")
        assert found is not None and plain is not None
        assert found == pytest.approx(stated, rel=0.05) and plain == pytest.approx(descent, rel=0.05)


CONDITIONING = {
    # iterations to 1e-6 with l2 = 1e-2 and 1e-3; None: not in 6000
    "plain": (None, None),
    "plain, s = 0.01": (647, 650),
    "in the scale of a mean": (666, 4124),
    "in the scale of a mean, s = 0.3": (394, 2424),
    "gradient descent": (256, 1588),
    "accelerated": (41, 120),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", CONDITIONING)
def test_conditioning(name: str, place: int) -> None:
    """(1/2m) ‖A x - b‖² + (λ/2) ‖x‖²; without a change of scale, z and the constraint of it are these."""
    people, lam, stated = 400, (1e-2, 1e-3)[place], CONDITIONING[name][place]
    t = toy(people=people, decay=0.8, lam=lam, mean=True)
    largest = float(torch.linalg.matrix_norm(t.a, 2).square())
    assert largest == pytest.approx(1.04, abs=0.15), "the figures are for such a problem"
    strategy: Strategy
    if name.startswith("plain"):
        s = (0.01 if name.endswith("0.01") else 1.0) * people**0.5
        step = 0.9 / (max(1.0 / people, lam) + s * (1.0 / people + largest) ** 0.5)
        strategy = egvfl(step=step, step_z=1.0 / people, constraint=s, l2=lam, normalise=False)
    elif name.startswith("in the scale"):
        s = 0.3 if name.endswith("0.3") else 1.0
        strategy = egvfl(step=0.9 / (1.0 + s * (1.0 + largest) ** 0.5), constraint=s, l2=lam, normalise=False)
    else:
        acceleration = "nesterov" if name == "accelerated" else "none"
        strategy = vertical_gd(step=1.0 / (largest + lam), acceleration=acceleration, l2=lam, normalise=False)
    found = steps_to(t, strategy, 1e-6, 6000)
    print(f"{name}, l2 = {lam:g}: {found}, {stated} stated")
    assert found is None if stated is None else found == pytest.approx(stated, rel=0.02)
