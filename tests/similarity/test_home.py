"""The server's own part: gradients, curvature and proximal steps, by every solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedopt import keys
from fedopt.optimizers.sgd import sgd
from fedopt.registry import ConfigError
from fedopt.similarity.groups import groups
from fedopt.similarity.home import Home, Solving, home
from fedopt.testing.strategies import small_federation, small_problem
from fedopt.types import FedoptError
from tests.similarity.quadratics import nodes


def at_home(solver: str, *, loss: str = "cross_entropy", classes: tuple[int, ...] = (), **options: Any) -> Home:
    problem = small_problem(small_federation(), loss=loss)
    return home(problem, groups(problem, (), classes), 0.3, Solving(solver, **options), sgd(0.05))  # type: ignore[arg-type]


def objective(h: Home, v: torch.Tensor, linear: torch.Tensor, centre: torch.Tensor, rho: float) -> torch.Tensor:
    problem, total = h.problem, 0.5 * h.l2 * v @ v + linear @ v + 0.5 * rho * (v - centre).square().sum()
    for split in h.parts.values():
        params = problem.network.spec.unflatten(v)
        outputs = problem.network.infer(params, {}, split.x)
        total = total + problem.per_sample(outputs, split.y).mean()
    return total


@pytest.mark.parametrize("solver", ["lbfgs", "accelerated"])
@pytest.mark.parametrize("classes", [(), (2,)])
def test_solvers_stop_where_the_rule_says(solver: str, classes: tuple[int, ...]) -> None:
    h = at_home(solver, classes=classes, tolerance=1e-6)
    d = h.problem.d
    linear = keys.normal(keys.root(1), d, dtype=torch.float64)
    centre, rho = keys.normal(keys.root(2), d, dtype=torch.float64), 0.7
    found = h.prox(linear, centre, rho, keys.root(0))
    v = found.point.clone().requires_grad_()
    objective(h, v, linear, centre, rho).backward()
    assert v.grad is not None
    assert float(v.grad.norm()) <= 1e-6 * rho * float((found.point - centre).norm()) * (1 + 1e-9)
    assert found.steps > 1
    rough = at_home(solver, classes=classes, tolerance=0.5).prox(linear, centre, rho, keys.root(0))
    assert rough.steps < found.steps


def test_an_optimizer_comes_near() -> None:
    exact = at_home("lbfgs", tolerance=1e-9)
    rough = at_home("optimizer", steps=400, batch=8)
    zero = torch.zeros(exact.problem.d, dtype=torch.float64)
    wanted, found = (h.prox(zero + 0.1, zero, 1.0, keys.root(0)).point for h in (exact, rough))
    assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())
    again = rough.prox(zero + 0.1, zero, 1.0, keys.root(0)).point
    assert torch.equal(found, again)
    # a proximal term that is steeper than the learning rate allows: it is taken implicitly
    wanted, found = (h.prox(zero + 9.0, zero, 100.0, keys.root(0)).point for h in (exact, rough))
    assert float((found - wanted).norm()) < 0.02 * float(wanted.norm())


def test_a_quadratic_is_solved_at_once_and_as_exactly_as_iterations_do() -> None:
    problem = nodes("aeg").problem
    parts = groups(problem, (), ())
    centre = keys.normal(keys.root(3), 30, dtype=torch.float64)
    exact = home(problem, parts, 0.1, Solving("auto"), sgd(0.1)).prox(centre * 0.5, centre, 3.0, keys.root(0))
    slow = home(problem, parts, 0.1, Solving("accelerated", tolerance=1e-9, steps=5000), sgd(0.1))
    assert exact.steps == 1
    torch.testing.assert_close(exact.point, slow.prox(centre * 0.5, centre, 3.0, keys.root(0)).point, rtol=0, atol=1e-7)


def test_gradient_and_curvature_are_of_the_servers_samples() -> None:
    h = at_home("lbfgs")
    x, u = (keys.normal(keys.root(i), h.problem.d, dtype=torch.float64) for i in (4, 5))
    zero = torch.zeros_like(x)

    def loss(v: torch.Tensor) -> torch.Tensor:
        return objective(h._replace(l2=0.0), v, zero, zero, 0.0)

    torch.testing.assert_close(h.gradient("f", x), torch.func.grad(loss)(x), rtol=0, atol=1e-12)
    wanted = torch.func.jacrev(torch.func.grad(loss))(x) @ u
    torch.testing.assert_close(h.curvature("f", x, u), wanted, rtol=0, atol=1e-10)


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(ConfigError, match="'exact' needs a quadratic loss; choose lbfgs"):
        at_home("exact").prox(torch.zeros(18), torch.zeros(18), 1.0, keys.root(0))
    problem = nodes("aeg").problem
    h = home(problem, groups(problem, (), ()), 0.0, Solving(), sgd(0.1))
    zero = torch.zeros(30, dtype=torch.float64)
    with pytest.raises(FedoptError, match="has no minimum: its own objective has curvature -1"):
        h.prox(zero, zero, 0.01, keys.root(0))
