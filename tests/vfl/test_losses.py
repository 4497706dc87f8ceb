"""The label owner's losses, its scale, the regularisers and the parties' blocks, each against another way to get it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from fedopt import keys
from fedopt.data import Federation, Shards, Split
from fedopt.models.logistic import logistic as linear_model
from fedopt.models.mlp import mlp
from fedopt.problem import LOSSES as OF_PROBLEMS
from fedopt.problem import Network, Problem
from fedopt.registry import ConfigError
from fedopt.vfl import losses
from fedopt.vfl.blocks import block, is_linear
from fedopt.vfl.losses import LOSSES, Loss, outputs, targets
from fedopt.vfl.owner import Owner, owner
from fedopt.vfl.penalties import Penalty

DOUBLE = torch.float64
SINGLE = ("squares", "logistic", "huber")
"""Losses that are sums over outputs."""

EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))


def normal(seed: int, *shape: int) -> Tensor:
    return keys.normal(keys.root(seed), *shape, dtype=DOUBLE)


def some_targets(name: str, people: int, seed: int = 0) -> Tensor:
    if name == "logistic":
        return 2.0 * (normal(seed, people, 1) > 0).to(DOUBLE) - 1.0
    if name == "softmax":
        return nn.functional.one_hot((normal(seed, people) > 0).long() + (normal(seed, people) > 1).long(), 4).to(
            DOUBLE
        )
    return normal(seed, people, 2)


# losses


def by_hand(name: str, z: list[float], t: list[float]) -> float:
    if name == "squares":
        return sum((a - b) ** 2 / 2 for a, b in zip(z, t, strict=True))
    if name == "logistic":
        return sum(math.log(1 + math.exp(-a * b)) for a, b in zip(z, t, strict=True))
    if name == "softmax":
        return -sum(b * math.log(math.exp(a) / sum(map(math.exp, z))) for a, b in zip(z, t, strict=True))
    residuals = [abs(a - b) for a, b in zip(z, t, strict=True)]
    return sum(u * u / 2 if u <= 1 else u - 0.5 for u in residuals)


@EVERY
def test_values_by_hand(loss: Loss) -> None:
    t = some_targets(loss.name, 30)
    z = 2.0 * normal(1, *t.shape)
    wanted = [by_hand(loss.name, a, b) for a, b in zip(z.tolist(), t.tolist(), strict=True)]
    assert loss.each(z, t).tolist() == pytest.approx(wanted, rel=1e-12)


@EVERY
def test_gradients_by_autograd_and_by_differences(loss: Loss) -> None:
    t = some_targets(loss.name, 30)
    z = (2.0 * normal(1, *t.shape)).requires_grad_()
    (wanted,) = torch.autograd.grad(loss.each(z, t).sum(), z)
    z = z.detach()
    torch.testing.assert_close(loss.gradient(z, t), wanted)
    for _ in range(5):
        direction = normal(2, *t.shape)
        up, down = (loss.each(z + h * direction, t) for h in (1e-6, -1e-6))
        slope = (loss.gradient(z, t) * direction).sum(dim=1)
        torch.testing.assert_close((up - down) / 2e-6, slope, rtol=1e-5, atol=1e-7)


@EVERY
def test_far_from_the_targets_nothing_overflows(loss: Loss) -> None:
    t = some_targets(loss.name, 6)
    for far in (-1e4, 1e4):
        z = torch.full_like(t, far)
        z[:, 0] = -far
        assert bool(torch.isfinite(loss.each(z, t)).all() and torch.isfinite(loss.gradient(z, t)).all())


def steepest(loss: Loss) -> float:
    """The largest ratio ‖∇l(z) - ∇l(z')‖ / ‖z - z'‖ of near points of a grid."""
    c = {"logistic": 1, "softmax": 2}.get(loss.name, 1)
    axis = torch.arange(-6.0, 6.0, 0.25, dtype=DOUBLE)
    grid = torch.cartesian_prod(*[axis] * c).reshape(-1, c)
    t = torch.ones_like(grid) if loss.name != "softmax" else torch.tensor([0.0, 1.0], dtype=DOUBLE).expand_as(grid)
    most = 0.0
    for seed in range(8):
        step = 1e-4 * normal(seed, c)
        turned = (loss.gradient(grid + step, t) - loss.gradient(grid, t)).norm(dim=1) / step.norm()
        most = max(most, float(turned.max()))
    return most


@EVERY
def test_no_curvature_is_above_the_constant_and_some_is_near(loss: Loss) -> None:
    found = steepest(loss)
    assert 0.98 * loss.smooth <= found <= loss.smooth * (1 + 1e-6)
    # and between points that are far apart
    t = some_targets(loss.name, 400)
    a, b = (3.0 * normal(seed, *t.shape) for seed in (5, 6))
    ratio = (loss.gradient(a, t) - loss.gradient(b, t)).norm(dim=1) / (a - b).norm(dim=1)
    assert float(ratio.max()) <= loss.smooth * (1 + 1e-12)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("gamma", [1e-3, 0.3, 1.0, 40.0])
def test_proximal_maps_by_a_minimiser_entry_by_entry(name: str, gamma: float) -> None:
    loss = LOSSES[name]
    assert loss.prox is not None
    t = some_targets(name, 25)
    v = 3.0 * normal(1, *t.shape)
    found = loss.prox(v, t, gamma)
    for j in range(25):
        for c in range(t.shape[1]):

            def objective(z: float, j: int = j, c: int = c) -> float:
                return gamma * by_hand(name, [z], [float(t[j, c])]) + (z - float(v[j, c])) ** 2 / 2

            near = minimize_scalar(objective, bounds=(-60.0, 60.0), method="bounded", options={"xatol": 1e-10}).x
            assert float(found[j, c]) == pytest.approx(near, abs=1e-5)
    # and exactly where the derivative is 0
    torch.testing.assert_close(found + gamma * loss.gradient(found, t), v, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gamma", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_logistic_proximal_map_far_away(gamma: float, dtype: torch.dtype) -> None:
    v = torch.tensor([[-1e6], [-50.0], [-1e-9], [0.0], [3.0], [1e6]], dtype=dtype)
    for sign in (-1.0, 1.0):
        t = torch.full_like(v, sign)
        z = losses._logistic_prox(v, t, gamma)
        assert bool(torch.isfinite(z).all())
        rest = (z - v - gamma * t * torch.sigmoid(-t * z)).abs()
        # a change of z in its last place moves this so far
        place = torch.finfo(dtype).eps * torch.maximum(z.abs(), v.abs()) * 8 + 1e-30
        slope = 1.0 + gamma * torch.sigmoid(z) * torch.sigmoid(-z)
        assert bool((rest <= slope * place + gamma * torch.finfo(dtype).eps * torch.sigmoid(-t * z) * 8).all())


@pytest.mark.parametrize("gamma", [0.1, 10.0, 1e3, 1e5, 1e8])
def test_the_logistic_proximal_map_of_many_numbers(gamma: float) -> None:
    """A method that jumps to and fro fails at a few of them."""
    v, t = 5.0 * normal(0, 20_000, 1), normal(1, 20_000, 1).sign()
    z = losses._logistic_prox(v, t, gamma)
    pushed = gamma * torch.sigmoid(-t * z)
    assert float(((z - v - t * pushed).abs() / (1.0 + pushed * torch.sigmoid(t * z))).max()) < 1e-12


def test_the_softmax_has_no_proximal_map() -> None:
    assert LOSSES["softmax"].prox is None


# targets


def test_targets_of_numbers_of_two_classes_and_of_more() -> None:
    y = torch.tensor([0, 1, 1, 0])
    numbers = torch.tensor([0.5, -2.0])
    assert targets("squares", numbers, 0, "regression", DOUBLE).tolist() == [[0.5], [-2.0]]
    assert targets("huber", numbers[:, None], 0, "regression", DOUBLE).tolist() == [[0.5], [-2.0]]
    for name in ("squares", "logistic", "huber"):
        assert targets(name, y, 2, "classification", DOUBLE).tolist() == [[-1.0], [1.0], [1.0], [-1.0]]
    assert targets("softmax", y, 2, "classification", DOUBLE).tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    for name in ("squares", "softmax", "huber"):
        assert targets(name, torch.tensor([2, 0]), 3, "classification", DOUBLE).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets("softmax", y, 2, "classification", torch.float32).dtype == torch.float32


def test_how_many_outputs() -> None:
    wanted = {
        ("squares", 2): 1,
        ("squares", 5): 5,
        ("logistic", 2): 1,
        ("softmax", 2): 2,
        ("softmax", 5): 5,
        ("huber", 2): 1,
        ("huber", 3): 3,
    }
    assert {(n, c): outputs(n, c, "classification") for n, c in wanted} == wanted
    assert [outputs(n, 0, "regression") for n in ("squares", "huber")] == [1, 1]


@pytest.mark.parametrize(
    ("name", "classes", "task", "words"),
    [
        ("hinge", 2, "classification", "one of squares, logistic, softmax, huber is needed; 'hinge' was given"),
        ("logistic", 3, "classification", "'logistic' needs two classes, the data have 3; take softmax"),
        ("logistic", 0, "regression", "'logistic' needs classes and the labels are numbers; take squares or huber"),
        ("softmax", 0, "regression", "'softmax' needs classes and the labels are numbers"),
    ],
)
def test_losses_that_do_not_fit_the_labels(name: str, classes: int, task: str, words: str) -> None:
    for call in (
        lambda: outputs(name, classes, task),
        lambda: targets(name, torch.tensor([0, 1]), classes, "classification" if name == "hinge" else task, DOUBLE),
    ):
        with pytest.raises(ConfigError) as refused:
            call()
        assert refused.value.where == "model.loss" and words in str(refused.value)


# the owner


def holder(name: str, k: float, people: int = 20) -> Owner:
    return Owner(LOSSES[name], some_targets(name, people), k)


@EVERY
@pytest.mark.parametrize("k", [1.0, 0.1, 1 / math.sqrt(20)])
def test_the_owner_scales_value_and_gradient_alike(loss: Loss, k: float) -> None:
    mine = holder(loss.name, k)
    z = normal(3, mine.targets.numel()).requires_grad_()
    rows = (z / k).reshape(mine.targets.shape)
    by_rows = [by_hand(loss.name, a, b) for a, b in zip(rows.tolist(), mine.targets.tolist(), strict=True)]
    assert float(mine.value(z.detach())) == pytest.approx(k * k * sum(by_rows), rel=1e-12)
    (wanted,) = torch.autograd.grad(mine.value(z), z)
    torch.testing.assert_close(mine.gradient(z.detach()), wanted)
    # k leaves the smoothness as it is
    a, b = normal(4, z.numel()), normal(5, z.numel())
    ratio = float((mine.gradient(a) - mine.gradient(b)).norm() / (a - b).norm())
    assert ratio <= loss.smooth * (1 + 1e-12)


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("k", [1.0, 1 / math.sqrt(20)])
@pytest.mark.parametrize("gamma", [0.2, 3.0])
def test_the_proximal_maps_of_the_owner(name: str, k: float, gamma: float) -> None:
    mine = holder(name, k)
    v = normal(3, mine.targets.numel())
    z = mine.prox(v, gamma)
    torch.testing.assert_close(z + gamma * mine.gradient(z), v)
    y = mine.dual_prox(v, gamma)
    torch.testing.assert_close(mine.dual_prox(v, gamma) + gamma * mine.prox(v / gamma, 1 / gamma), v)  # Moreau
    # u = (v - y) / γ is a subgradient of l* at y, that is ∇l(u) = y
    torch.testing.assert_close(mine.gradient((v - y) / gamma), y)


def conjugate(name: str, y: float, t: float, k: float) -> float:
    """l*(y) of one entry, with l(z) = k² l₁(z / k): k² l₁*(y / k)."""
    u = y / k
    if name == "squares":
        return k * k * (u * u / 2 + t * u)
    if name == "huber":
        return k * k * (u * u / 2 + t * u) if abs(u) <= 1 else math.inf
    p = -t * u
    if not 0 <= p <= 1:
        return math.inf
    return k * k * sum(q * math.log(q) if q > 0 else 0.0 for q in (p, 1 - p))


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("k", [1.0, 0.4])
def test_the_dual_proximal_map_by_a_minimiser_on_the_conjugate(name: str, k: float) -> None:
    mine, gamma = holder(name, k, 12), 0.7
    v, t = normal(3, mine.targets.numel()), mine.targets.flatten()
    found = mine.dual_prox(v, gamma)
    for j in range(v.numel()):
        low, high = {"squares": (-20.0, 20.0), "huber": (-k, k)}.get(name, sorted((0.0, -k * float(t[j]))))

        def objective(y: float, j: int = j) -> float:
            return gamma * conjugate(name, y, float(t[j]), k) + (y - float(v[j])) ** 2 / 2

        near = minimize_scalar(objective, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x
        assert float(found[j]) == pytest.approx(near, abs=1e-4)


def test_the_owner_of_coupled_outputs_has_no_dual() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.form: 'dual' needs a loss of single outputs; 'softmax'"):
        holder("softmax", 1.0).dual_prox(torch.zeros(80, dtype=DOUBLE), 1.0)


def federation(y: Tensor, names: tuple[str, ...], task: str = "classification", *, labelled: bool = True) -> Problem:
    x = normal(0, y.shape[0], 3)
    held = Shards(x, torch.arange(len(y)), torch.zeros(len(y), dtype=torch.int64), torch.tensor([0, len(y)]))
    data = Federation({"train": held}, {"train": Split(x[:, :0], y)} if labelled else {}, names, task=task)
    network, initial = Network.of(linear_model(inputs=(3,), classes=max(1, len(names)), bias=False).to(DOUBLE))
    return Problem(network, data, OF_PROBLEMS["squares"], initial)


def test_the_owner_of_a_problem() -> None:
    problem = federation(torch.tensor([0, 2, 1, 1]), ("a", "b", "c"))
    mine = owner(problem, "softmax", True)
    assert mine.k == 0.5 and mine.loss is LOSSES["softmax"]
    assert mine.targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert owner(problem, "softmax", False).k == 1.0
    numbers = owner(federation(torch.tensor([0.5, 3.0]), (), "regression"), "squares", True)
    assert numbers.targets.tolist() == [[0.5], [3.0]]
    # k² Σ over people of the loss of k A x / k is the mean
    z = normal(1, 12)
    mean = (
        sum(by_hand("softmax", a, b) for a, b in zip(z.reshape(4, 3).tolist(), mine.targets.tolist(), strict=True)) / 4
    )
    assert float(mine.value(mine.k * z)) == pytest.approx(mean)
    with pytest.raises(ConfigError, match="data: the label owner is without labels"):
        owner(federation(torch.tensor([0, 1]), ("a", "b"), labelled=False), "squares", True)


# penalties


def test_the_elastic_net_by_hand() -> None:
    x = normal(0, 9)
    penalty = Penalty(0.3, 0.7)
    wanted = sum(0.15 * v * v + 0.7 * abs(v) for v in x.tolist())
    assert float(penalty.value(x)) == pytest.approx(wanted)
    smooth = x.clone().requires_grad_()
    torch.autograd.backward(Penalty(0.3, 0.0).value(smooth))
    torch.testing.assert_close(penalty.gradient(x), smooth.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
def test_its_proximal_map_by_a_minimiser(gamma: float) -> None:
    v = normal(1, 30)
    for step in (gamma, torch.tensor(gamma, dtype=DOUBLE)):
        found = Penalty(0.3, 0.7).prox(v, step)
        for j in range(30):

            def objective(x: float, j: int = j) -> float:
                return gamma * 0.7 * abs(x) + (x - float(v[j])) ** 2 / 2

            near = minimize_scalar(objective, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-10}).x
            assert float(found[j]) == pytest.approx(near, abs=1e-5)
    assert bool((Penalty(0.3, 0.7).prox(v, 2.0)[v.abs() < 1.4] == 0).all())
    assert torch.equal(Penalty(0.3, 0.0).prox(v, gamma), v)


# blocks


def party(module: nn.Module, people: int = 7, inputs: tuple[int, ...] = (4,)) -> tuple[Problem, Tensor]:
    x = normal(0, people, *inputs)
    held = Shards(x, torch.arange(people), torch.zeros(people, dtype=torch.int64), torch.tensor([0, people]))
    network, initial = Network.of(module.to(DOUBLE))
    data = Federation({"train": held}, {"train": Split(x[:, :0], torch.zeros(people))}, (), task="regression")
    return Problem(network, data, OF_PROBLEMS["squares"], initial), x


@pytest.mark.parametrize(("inputs", "classes"), [((4,), 1), ((2, 3), 1), ((4,), 3), ((2, 2, 2), 2)])
def test_the_linear_block_is_a_product_and_its_adjoint(inputs: tuple[int, ...], classes: int) -> None:
    problem, features = party(linear_model(inputs=inputs, classes=classes, bias=False), inputs=inputs)
    mine, d = block(problem), classes * math.prod(inputs)
    assert mine.linear
    x, y = normal(1, d), normal(2, 7 * classes)
    wanted = [
        sum(float(w) * float(v) for w, v in zip(x.reshape(classes, -1)[c], features[j].flatten(), strict=True))
        for j in range(7)
        for c in range(classes)
    ]
    assert mine.forward(x, features).tolist() == pytest.approx(wanted)
    module = copy.deepcopy(problem.network.inference)
    with torch.no_grad():
        next(iter(module.parameters())).copy_(x.reshape(classes, -1))
        torch.testing.assert_close(mine.forward(x, features), module(features).flatten())
    left = float(mine.forward(x, features) @ y)
    for at in (x, normal(3, d), torch.zeros(d, dtype=DOUBLE)):
        assert left == pytest.approx(float(x @ mine.pull(at, features, y)))


NETWORKS: list[tuple[Callable[[], nn.Module], int]] = [
    (lambda: mlp(inputs=(4,), classes=2, hidden=(5,), activation="tanh"), 2),
    (lambda: mlp(inputs=(4,), classes=1, hidden=(6, 3), activation="silu"), 1),
    (lambda: linear_model(inputs=(4,), classes=3, bias=True), 3),
    (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)), 2),
]


@pytest.mark.parametrize(("module", "classes"), NETWORKS)
def test_other_blocks_are_the_network_and_its_derivative(module: Callable[[], nn.Module], classes: int) -> None:
    problem, features = party(module())
    mine = block(problem)
    assert not mine.linear
    x, y, direction = normal(1, problem.d), normal(2, 7 * classes), normal(3, problem.d)
    network = copy.deepcopy(problem.network.inference)
    nn.utils.vector_to_parameters(x, network.parameters())
    for parameter in network.parameters():
        parameter.requires_grad_()
    told = network(features).flatten()
    torch.testing.assert_close(mine.forward(x, features), told.detach())
    grads = torch.autograd.grad(told @ y, list(network.parameters()))
    torch.testing.assert_close(mine.pull(x, features, y), torch.cat([g.flatten() for g in grads]))
    ahead, behind = (mine.forward(x + h * direction, features) for h in (1e-6, -1e-6))
    slope = float((ahead - behind) @ y) / 2e-6
    assert float(direction @ mine.pull(x, features, y)) == pytest.approx(slope, rel=1e-6)


def test_what_is_linear() -> None:
    line, biased = nn.Linear(4, 2, bias=False), nn.Linear(4, 2)
    linear = [line, nn.Sequential(line), nn.Sequential(nn.Flatten(), line), nn.Sequential(nn.Sequential(line))]
    assert all(map(is_linear, linear))
    others = [
        biased,
        nn.Sequential(line, nn.ReLU()),
        nn.Sequential(line, nn.Linear(2, 1, bias=False)),
        nn.Sequential(nn.Dropout(0.5), line),
        nn.Conv1d(1, 1, 2, bias=False),
        nn.Flatten(),
        nn.Sequential(),
    ]
    assert not any(map(is_linear, others))


def test_a_linear_block_treats_changes_as_points() -> None:
    problem, features = party(linear_model(inputs=(4,), classes=2, bias=False))
    mine = block(problem)
    a, b = normal(1, 8), normal(2, 8)
    change = mine.forward(a, features) - mine.forward(b, features)
    torch.testing.assert_close(mine.forward(a - b, features), change)


def test_batch_normalisation_is_refused() -> None:
    problem, _ = party(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ConfigError, match="model: a bottom network without buffers is needed"):
        block(problem)


def test_numpy_agrees_on_the_whole_objective() -> None:
    """l(k A x) + r(x) of a small problem, with nothing of ours."""
    y = torch.tensor([1, 0, 1, 1, 0])
    problem = federation(y, ("no", "yes"))
    features, mine, penalty = problem.data.splits["train"].x, owner(problem, "logistic", True), Penalty(0.2, 0.1)
    x = normal(9, 3)
    signs, margins = 2.0 * y.numpy() - 1.0, features.numpy() @ x.numpy()
    wanted = np.log1p(np.exp(-signs * margins)).mean() + 0.1 * (x.numpy() ** 2).sum() + 0.1 * np.abs(x.numpy()).sum()
    assert float(mine.value(mine.k * (features @ x)) + penalty.value(x)) == pytest.approx(wanted)
