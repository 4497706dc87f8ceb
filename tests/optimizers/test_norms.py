"""Norms and preconditioners: what makes a step steepest, and what the named methods are made of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt.optimizers import build, hyper, norms, preconditioners
from fedopt.optimizers.norms.frobenius import frobenius
from fedopt.optimizers.norms.max_entry import max_entry
from fedopt.optimizers.norms.spectral import spectral
from fedopt.optimizers.preconditioners.entrywise import entrywise
from fedopt.optimizers.preconditioners.kronecker import kronecker
from fedopt.registry import ConfigError, facts
from fedopt.types import Named

EXACT = [frobenius(), max_entry(), spectral("svd"), spectral("cubic", 60)]
SHAPES = [(6, 10), (10, 6), (4, 4), (1, 5)]


def matrix(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("room", [norms.registry, preconditioners.registry], ids=["norms", "preconditioners"])
def test_parts_have_a_reference_and_documented_options(room: Any) -> None:
    assert len(room.names()) >= 3
    for name in room.names():
        part = room.get(name)
        assert facts(part)["reference"]
        for option in room.options(name):
            assert f"{option}:" in part.__doc__ or f"{option}," in part.__doc__, (name, option)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", EXACT, ids=repr)
def test_the_step_has_norm_one_and_is_steepest(norm: Any, shape: tuple[int, int]) -> None:
    y = matrix(0, *shape)
    (t,) = norm.toward([y])
    assert float((y * t).sum()) == pytest.approx(float(norm.dual(y)), rel=1e-12)
    assert float(norm.norm(t)) == pytest.approx(1.0, rel=1e-12)
    for seed in range(20):  # nothing else of norm one is steeper
        other = matrix(1 + seed, *shape)
        assert float((y * other / norm.norm(other)).sum()) <= float(norm.dual(y)) * (1 + 1e-12)


@pytest.mark.parametrize("norm", [*EXACT, spectral()], ids=repr)
def test_zero_stays_zero(norm: Any) -> None:
    assert torch.equal(norm.toward([torch.zeros(3, 4)])[0], torch.zeros(3, 4))


def test_equal_shapes_are_worked_on_as_one_batch() -> None:
    ys = [matrix(i, *shape) for i, shape in enumerate([(6, 10), (3, 3), (10, 6), (6, 10), (7, 2)])]
    for norm in (spectral(), spectral("svd")):
        for one, y in zip(norm.toward(ys), ys, strict=True):
            torch.testing.assert_close(one, norm.toward([y])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "low"), [(5, 0.682), (10, 0.693), (20, 0.682)])
def test_the_quintic_iteration_does_not_converge(steps: int, low: float) -> None:
    (t,) = spectral("quintic", steps).toward([matrix(0, 6, 10)])
    values = torch.linalg.svdvals(t)
    assert low - 0.02 <= float(values.min()) and float(values.max()) <= 1.1344 + 1e-4


def test_the_cubic_one_does() -> None:
    y = torch.tensor(np.random.default_rng(0).standard_normal((6, 10)))
    u, _, vt = np.linalg.svd(y.numpy(), full_matrices=False)
    np.testing.assert_allclose(spectral("cubic", 20).toward([y])[0].numpy(), u @ vt, atol=1e-13)


def test_a_norm_seen_through_a_number_for_each_entry() -> None:
    """⟨G, LMO_D(G)⟩ = -‖G / D‖_*, ‖D ∘ LMO_D(G)‖ = 1."""
    g, part, norm = matrix(0, 5, 7), entrywise(0.25, "sum", eps=0.0), spectral("svd")
    state = part.update(part.init(g), matrix(1, 5, 7))
    d = matrix(1, 5, 7).abs().sqrt()
    step = part.outward(part.at(state), norm.toward([part.inward(part.at(state), g)])[0])
    assert float((g * step).sum()) == pytest.approx(float(norm.dual(g / d)), rel=1e-12)
    assert float(norm.norm(d * step)) == pytest.approx(1.0, rel=1e-12)


def test_a_norm_seen_through_two_matrices() -> None:
    """⟨G, LMO⟩ = -‖L⁻ᵀ G R⁻ᵀ‖_*, ‖L LMO R‖ = 1."""
    g, part, norm = matrix(0, 4, 6), kronecker("sum", 0.5, eps=1e-3, every=1), spectral("svd")
    state = part.init(g)
    for seed in range(8):
        state = part.update(state, matrix(1 + seed, 4, 6))
    left, right = (torch.linalg.inv(state[side]) for side in ("left", "right"))
    step = part.outward(part.at(state), norm.toward([part.inward(part.at(state), g)])[0])
    wanted = norm.dual(torch.linalg.inv(left).T @ g @ torch.linalg.inv(right).T)
    assert float((g * step).sum()) == pytest.approx(float(wanted), rel=1e-10)
    assert float(norm.norm(left @ step @ right)) == pytest.approx(1.0, rel=1e-10)


def trajectory(name: str, options: dict[str, Any], shape: tuple[int, int], steps: int = 6) -> list[Tensor]:
    optimizer, params = build(name, options), {"w": matrix(100, *shape)}
    state, points = optimizer.init(params), []
    for t in range(steps):
        params, state = optimizer.update({"w": matrix(t, *shape)}, state, params, hyper(optimizer, t))
        points.append(params["w"])
    return points


def root(a: np.ndarray, power: float) -> np.ndarray:
    """(A + 1e-4 λ_max I)^power"""
    values, vectors = np.linalg.eigh(a)
    return (vectors * (values.clip(0) + 1e-4 * values[-1]) ** power) @ vectors.T


def polar(a: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


def by_hand(direction: Any, shape: tuple[int, int], *, momentum: float, lr: float = 0.1, steps: int = 6) -> list[Any]:
    """x ← x - η direction(g, m̂, memory), one step after the other."""
    x, m, memory, points = matrix(100, *shape).numpy(), np.zeros(shape), {}, []
    for t in range(steps):
        g = matrix(t, *shape).numpy()
        m = momentum * m + (1 - momentum) * g
        x = x - lr * direction(g, m / (1 - momentum ** (t + 1)), memory, t)
        points.append(x)
    return points


def ema(memory: dict[str, Any], name: str, new: Any, beta: float, t: int) -> Any:
    memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * new
    return memory[name] / (1 - beta ** (t + 1))


def total(memory: dict[str, Any], name: str, new: Any) -> Any:
    memory[name] = memory.get(name, 0.0) + new
    return memory[name]


def kl(g: Any, m: Any, memory: dict[str, Any], t: int) -> Any:
    before = 1 - 0.9**t
    a_inverse = np.eye(g.shape[0]) if t == 0 else root(memory["a"] / before, -1.0)
    b_inverse = np.eye(g.shape[1]) if t == 0 else root(memory["b"] / before, -1.0)
    a = ema(memory, "a", g @ b_inverse @ g.T, 0.9, t)
    b = ema(memory, "b", g.T @ a_inverse @ g, 0.9, t)
    return root(a, -0.5) @ m @ root(b, -0.5)


def basis(a: Any) -> Any:
    """Of A with 1e-4 of its mean eigenvalue added, growing along the diagonal."""
    return np.linalg.eigh(a + 1e-4 * np.trace(a) / len(a) * np.diag(np.linspace(0, 1, len(a))))[1]


def rotated(g: Any, m: Any, memory: dict[str, Any], t: int, beta: float) -> tuple[Any, Any, Any]:
    left = basis(ema(memory, "a", g @ g.T, beta, 0) * (1 - beta))
    right = basis(ema(memory, "b", g.T @ g, beta, 0) * (1 - beta))
    return left, right, left.T @ m @ right


def soap(g: Any, m: Any, memory: dict[str, Any], t: int) -> Any:
    left, right, turned = rotated(g, m, memory, t, 0.9)
    v = ema(memory, "v", (left.T @ g @ right) ** 2, 0.8, t)
    return left @ (turned / (np.sqrt(v) + 1e-3)) @ right.T


def muadam(g: Any, m: Any, memory: dict[str, Any], t: int) -> Any:
    memory["v"] = 0.99 * memory.get("v", 0.0) + 0.01 * g**2
    d = np.sqrt((np.sqrt(memory["v"]) + 1e-3) / np.sqrt(1 - 0.99 ** (t + 1)))
    return polar(m / d) / d * math.sqrt(max(1.0, g.shape[0] / g.shape[1]))


def muadam_sania(g: Any, m: Any, memory: dict[str, Any], t: int) -> Any:
    d = np.sqrt(ema(memory, "v", g**2, 0.99, t) + 1e-3)
    return polar(m / d) / d * math.sqrt(max(1.0, g.shape[0] / g.shape[1]))


SVD = {"ns": "svd"}
ROWS: dict[str, tuple[dict[str, Any], Any, float]] = {
    "shampoo": (
        {"eps": 1e-4, "every": 1, "beta1": 0.5},
        lambda g, m, s, t: root(total(s, "a", g @ g.T), -0.25) @ m @ root(total(s, "b", g.T @ g), -0.25),
        0.5,
    ),
    "one_sided_shampoo": (
        {"eps": 1e-4, "every": 1},
        lambda g, m, s, t: root(total(s, "a", g @ g.T), -0.5) @ m,
        0.9,
    ),
    "kfac": (
        {"eps": 1e-4, "every": 1, "beta": 0.8},
        lambda g, m, s, t: root(ema(s, "a", g @ g.T, 0.8, t), -0.25) @ m @ root(ema(s, "b", g.T @ g, 0.8, t), -0.25),
        0.9,
    ),
    "kl_shampoo": ({"eps": 1e-4, "every": 1, "beta": 0.9}, kl, 0.9),
    "soap": ({"eps": 1e-3, "every": 1, "beta": 0.9, "beta2": 0.8}, soap, 0.95),
    "muon": (
        {**SVD, "nesterov": False, "momentum": 0.9},
        lambda g, m, s, t: polar(m) * math.sqrt(max(1.0, g.shape[0] / g.shape[1])),
        0.9,
    ),
    "muadam": ({**SVD, "beta2": 0.99, "eps": 1e-3}, muadam, 0.9),
    "muadam_sania": ({**SVD, "beta2": 0.99, "eps": 1e-3}, muadam_sania, 0.9),
    "preconditioned": (
        {"norm": "frobenius"},
        lambda g, m, s, t: m / np.sqrt((m**2).sum()),
        0.9,
    ),
}


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("name", list(ROWS))
def test_a_combination_is_its_direct_form(name: str, shape: tuple[int, int]) -> None:
    options, direction, momentum = ROWS[name]
    got = trajectory(name, {"lr": 0.1, **options}, shape)
    for one, wanted in zip(got, by_hand(direction, shape, momentum=momentum), strict=True):
        np.testing.assert_allclose(one.numpy(), wanted, rtol=0, atol=1e-8)


def test_splus_is_signs_in_eigenbases() -> None:
    """Against matrices, from a state that several gradients made: the first one is diagonal in its own bases."""
    optimizer, params, beta = build("splus", {"lr": 0.1, "every": 1, "beta": 0.9}), {"w": matrix(100, 4, 4)}, 0.9
    state, a, b, m = optimizer.init(params), np.zeros((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    for t in range(5):
        g, before = matrix(t, 4, 4).numpy(), params["w"].numpy()
        params, state = optimizer.update({"w": matrix(t, 4, 4)}, state, params, hyper(optimizer, t))
        a, b = beta * a + (1 - beta) * g @ g.T, beta * b + (1 - beta) * g.T @ g
        m = 0.9 * m + 0.1 * g
        if t:
            left, right = basis(a), basis(b)
            step = left @ np.sign(left.T @ m @ right) @ right.T
            np.testing.assert_allclose(params["w"].numpy(), before - 0.1 * step, rtol=0, atol=1e-9)


ENTRIES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"preconditioner": {"name": "entrywise", "eps": 0.0}}, "adam", {"eps": 0.0}),
    ({"preconditioner": {"name": "entrywise", "power": 0.5, "eps": 0.0}}, "adam_sania", {"eps": 0.0}),
    (
        {"preconditioner": {"name": "entrywise", "mean": "sum", "eps": 0.0}, "beta1": 0.0},
        "adagrad",
        {"eps": 0.0, "beta1": 0.0},
    ),
]


@pytest.mark.parametrize(("combination", "name", "options"), ENTRIES, ids=["adam", "adam_sania", "adagrad"])
def test_methods_entry_by_entry_are_combinations_too(
    combination: dict[str, Any], name: str, options: dict[str, Any]
) -> None:
    norm = {"name": "frobenius", "normalise": False}
    got = trajectory("preconditioned", {"lr": 0.1, "norm": norm, **combination}, (4, 6))
    for one, wanted in zip(got, trajectory(name, {"lr": 0.1, **options}, (4, 6)), strict=True):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-12)


def test_madgrads_direction_is_a_combination() -> None:
    """g / (Σ g²)^(1/3), the first step of dual averaging without momentum."""
    part, g = entrywise(1 / 6, "sum", eps=0.0), matrix(0, 4, 6)
    state = part.update(part.init(g), g)
    step = part.outward(part.at(state), part.inward(part.at(state), g))
    first = trajectory("madgrad", {"lr": 1.0, "momentum": 0.0, "eps": 0.0}, (4, 6), steps=1)[0]
    torch.testing.assert_close(matrix(100, 4, 6) - step, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ("preconditioned", {"norm": "max_entry", "bias_correction": False}),
            ("signum", {"momentum": 0.9}),
        ),
        (
            ("preconditioned", {"norm": "frobenius", "bias_correction": False}),
            ("normalised_sgd", {"momentum": 0.9}),
        ),
        (
            ("lion_muon", {"period": 1, "beta1": 0.8, "beta2": 0.8, "weight_decay": 0.0, "scale": "rows"}),
            ("muon", {"momentum": 0.8, "nesterov": False}),
        ),
        (
            ("preconditioned", {"norm": "spectral", "scale": "rows"}),
            ("muadam", {"frozen_step": True, "beta2": 0.0, "eps": 0.0, "ns_steps": 5, "lr": 0.1}),
        ),
        (("scion", {"ns": "svd", "alpha": 0.1}), ("muon", {"ns": "svd", "momentum": 0.9, "nesterov": False})),
    ],
    ids=["signum", "normalised_sgd", "lion_muon", "muadam", "scion"],
)
def test_limits(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    shape = (4, 4)
    if other[0] == "muadam":  # gradients of equal size for every entry: D is 1
        optimizers = [build(name, {"lr": 0.1, **options}) for name, options in (one, other)]
        ends = []
        for optimizer in optimizers:
            params = {"w": matrix(100, *shape)}
            state = optimizer.init(params)
            for t in range(4):
                params, state = optimizer.update({"w": matrix(t, *shape).sign()}, state, params, hyper(optimizer, t))
            ends.append(params["w"])
        torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
        return
    for a, b in zip(*(trajectory(n, {"lr": 0.1, **o}, shape) for n, o in (one, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_sign_steps_of_lion_muon_are_lions() -> None:
    got = trajectory("lion_muon", {"lr": 0.1, "lr_sign": 0.3, "period": 100, "weight_decay": 0.0}, (4, 6))
    for before, after in itertools.pairwise(got):
        assert float((after - before).abs().max()) == pytest.approx(0.03)
    lion = trajectory("lion", {"lr": 0.03}, (4, 6))
    for t in range(1, 6):  # from the second step on they go side by side
        torch.testing.assert_close(got[t] - got[t - 1], lion[t] - lion[t - 1], rtol=0, atol=1e-12)


def test_muon_is_torchs() -> None:
    """Momentum to 1e-6; the step to 1e-2, which torch makes in bfloat16."""
    w = torch.nn.Parameter(matrix(100, 12, 8).float())
    theirs = torch.optim.Muon([w], lr=0.02, weight_decay=0.1, momentum=0.95)
    optimizer = build("muon", {"lr": 0.02, "weight_decay": 0.1, "ns_dtype": "bfloat16"})
    params = {"w": w.detach().clone()}
    state = optimizer.init(params)
    for t in range(20):
        before = w.detach().clone()
        w.grad = matrix(t, 12, 8).float()
        theirs.step()
        params, state = optimizer.update({"w": w.grad}, state, {"w": before}, hyper(optimizer, t))
        assert float((params["w"] - w.detach()).norm() / (w.detach() - before).norm()) < 1e-2
        buffer = theirs.state[w]["momentum_buffer"]
        torch.testing.assert_close(state["matrices"]["w"]["m"], buffer, rtol=1e-6, atol=1e-7)


def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (torch.tanh(x @ w.T) - y).square().mean()


def losses(name: str, options: dict[str, Any], scale: Tensor) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, n, generator=generator, dtype=torch.float64) for n in (10, 6))
    start = 0.3 * torch.randn(6, 10, generator=generator, dtype=torch.float64)
    optimizer, params = build(name, {"lr": 1e-3, **options}), {"w": start / scale}
    state, seen = optimizer.init(params), []
    for t in range(60):
        rows = torch.randint(300, (64,), generator=torch.Generator().manual_seed(t))
        w = params["w"].clone().requires_grad_()
        value = loss(w, scale * x[rows], y[rows])
        (g,) = torch.autograd.grad(value, w)
        seen.append(float(value.detach()))
        params, state = optimizer.update({"w": g}, state, params, hyper(optimizer, t))
    return seen


@pytest.mark.parametrize(
    ("name", "options", "invariant"),
    [
        ("muadam_sania", {"eps": 0.0, "beta2": 0.99, "ns": "svd"}, True),
        ("muadam_sania", {"eps": 0.0, "beta2": 0.99, "ns_steps": 5}, True),
        ("adam_sania", {"eps": 0.0, "beta2": 0.99}, True),
        ("muadam", {"eps": 0.0, "beta2": 0.99}, False),
        ("adam", {"eps": 0.0, "beta2": 0.99}, False),
        ("muon", {}, False),
    ],
)
def test_scaled_features(name: str, options: dict[str, Any], invariant: bool) -> None:
    scale = (10.0 * torch.rand(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 5.0).exp()
    plain, scaled = (losses(name, options, s) for s in (torch.ones_like(scale), scale))
    gap = max(abs(a - b) for a, b in zip(plain, scaled, strict=True))
    assert (gap < 1e-9) if invariant else (gap > 0.02)


def test_statistics_that_transform_with_the_matrix_give_the_same_path() -> None:
    """L(W) = L'(A W B): Kronecker factors of KL-Shampoo move with A and B, so that spectral steps are the same."""
    a, b = matrix(1, 4, 4) + 2.0 * torch.eye(4), matrix(2, 6, 6) + 2.0 * torch.eye(6)
    norm, part = spectral("svd"), kronecker("kl", 1.0, eps=1e-30, every=1, beta=0.9)
    plain, turned = part.init(matrix(0, 4, 6)), part.init(matrix(0, 4, 6))
    first = matrix(5, 4, 6)
    eye_left, eye_right = torch.eye(4, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    plain = {**plain, "a": 0.1 * eye_left, "b": 0.1 * eye_right, "step": torch.ones((), dtype=torch.float64)}
    turned = {**plain, "a": 0.1 * a.T @ a, "b": 0.1 * b @ b.T}
    for seed in range(4):
        g = matrix(10 + seed, 4, 6)
        plain, turned = part.update(plain, g), part.update(turned, a.T @ g @ b.T)
        steps = [
            part.outward(part.at(state), norm.toward([part.inward(part.at(state), y)])[0])
            for state, y in ((plain, first), (turned, a.T @ first @ b.T))
        ]
        torch.testing.assert_close(a @ steps[1] @ b, steps[0], rtol=1e-6, atol=1e-6)


def test_a_frozen_step_shortens_the_steps() -> None:
    g = matrix(0, 4, 6).sign()  # of equal sizes, so that V is the same in every step
    ends = []
    for frozen in (False, True):
        optimizer = build("muadam", {"lr": 1.0, "eps": 0.0, "frozen_step": frozen, "ns": "svd"})
        params = {"w": torch.zeros(4, 6, dtype=torch.float64)}
        state, lengths = optimizer.init(params), []
        for t in range(100):
            new, state = optimizer.update({"w": g}, state, params, hyper(optimizer, t))
            lengths.append(float((new["w"] - params["w"]).norm()))
            params = new
        ends.append(lengths)
    assert ends[1][0] / ends[0][0] == pytest.approx(1.0)
    assert ends[1][99] / ends[0][99] == pytest.approx(((1 - 0.999) / (1 - 0.999**100)) ** 0.25, rel=1e-6)


def test_kernels_are_matrices_and_other_parameters_have_their_own_optimizer() -> None:
    optimizer = build("muon", {"lr": 0.1, "rows": 8, "apart": ["head*"], "vectors": {"name": "sgd", "lr": 0.5}})
    params = {
        "kernel": matrix(0, 4, 3, 2, 2),
        "bias": matrix(1, 4),
        "head.weight": matrix(2, 4, 5),
        "words": matrix(3, 8, 2),
    }
    state = optimizer.init(params)
    assert set(state["matrices"]) == {"kernel"}
    new, _ = optimizer.update(params, state, params, hyper(optimizer, 0))
    for name in ("bias", "head.weight", "words"):
        torch.testing.assert_close(new[name], 0.5 * params[name])
    flat = {"w": params["kernel"].reshape(4, -1)}
    alone, _ = optimizer.update(flat, optimizer.init(flat), flat, hyper(optimizer, 0))
    torch.testing.assert_close(new["kernel"].reshape(4, -1), alone["w"])


def test_bases_and_roots_are_renewed_when_they_are_due() -> None:
    for part in (kronecker(every=3), preconditioners.parse({"name": "eigenbasis", "every": 3})):
        state, seen = part.init(matrix(0, 3, 4)), []
        for t in range(7):
            state = part.update(state, matrix(t, 3, 4))
            seen.append(state["left"])
        changed = [not torch.equal(x, y) for x, y in itertools.pairwise(seen)]
        assert changed == [True, True, True, False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "spectrl"}, "did you mean 'spectral'|Did you mean 'spectral'"),
        ({"norm": {"name": "spectral", "steps": 0}}, "steps"),
        ({"norm": 3}, "a name, or a table with a name"),
        ({"preconditioner": "kronecer"}, "kronecker"),
        ({"vectors": {"lr": 0.1}}, "a table with a name is needed"),
        ({"vectors": {"name": "adamw", "lr": -1.0}}, ">= 0"),
    ],
)
def test_bad_parts_are_refused_by_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("preconditioned", {"lr": 0.1, **options})


def memory(name: str, **options: Any) -> float:
    """Numbers kept for each parameter of a large matrix."""
    params: Named = {"w": torch.zeros(64, 64)}
    state = build(name, {"lr": 0.1, **options}).init(params)
    return sum(x.numel() for x in torch.utils._pytree.tree_leaves(state)) / 64**2


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("muon", 1),
        ("lion", 1),
        ("lion_muon", 1),
        ("signum", 1),
        ("scion", 1),
        ("adam", 2),
        ("muadam", 2),
        ("muadam_sania", 2),
    ],
)
def test_memory_for_each_parameter(name: str, buffers: int) -> None:
    assert memory(name) == pytest.approx(buffers, abs=0.01)
