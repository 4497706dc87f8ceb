"""The server's own part of the objective, h_1 = f_1 + g_1 + (l2 / 2) ‖x‖², and proximal steps on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor
from torch.func import grad
from torch.utils.weak import WeakTensorKeyDictionary

from fedopt import keys
from fedopt.data import Split
from fedopt.optimizers import hyper_parameters
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.similarity.groups import Groups
from fedopt.types import FedoptError, Optimizer

Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(gt=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]
Solver = Literal["auto", "exact", "lbfgs", "accelerated", "optimizer"]

LARGEST = 2048
"""Parameters up to which a Hessian is formed."""


class Solving(NamedTuple):
    """How the server solves its subproblem.

    solver: `exact` by the eigenvectors of the Hessian, for quadratic h_1; `lbfgs` and `accelerated` (Nesterov's method
        with a line search) until ‖∇A(v)‖ <= tolerance · ρ ‖v - c‖, or `steps` are done; `optimizer` takes `steps` of
        the server optimizer on mini-batches of `batch` of the server's samples, gradients divided by 1 + ρ lr; `auto`
        is `exact` where h_1 is quadratic, else `lbfgs`.
    """

    solver: Solver = "auto"
    tolerance: float = 0.1
    steps: int = 500
    batch: int = 64


class Quadratic(NamedTuple):
    """h_1 of constant Hessian: its eigenvalues and eigenvectors, ∇h_1(0), and each part's Hessian and slope at zero."""

    values: Tensor
    vectors: Tensor
    slope: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]


class Solved(NamedTuple):
    """The point of a proximal step, and how it was found."""

    point: Tensor
    steps: int
    gradient: float
    """‖∇A‖ at the point; NaN where it was not looked at."""


class Home(NamedTuple):
    """What the server can do without anybody else."""

    problem: Problem
    parts: Mapping[str, Split]
    """Samples of f_1, and of g_1 where there is a g."""
    l2: float
    solving: Solving
    optimizer: Optimizer

    def gradient(self, part: str, x: Tensor) -> Tensor:
        """∇f_1(x) or ∇g_1(x) `[d]`, without l2."""
        quadratic = self._quadratic()
        if quadratic is not None:  # a product with its Hessian, in place of a pass over the samples
            hessian, at_zero = quadratic.parts[part]
            return torch.mv(hessian, x.double()).add_(at_zero).to(x.dtype)
        return self._slope(part, x)

    def _slope(self, part: str, x: Tensor) -> Tensor:
        slope: Tensor = grad(self._loss(part))(x)
        return slope

    def curvature(self, part: str, x: Tensor, u: Tensor) -> Tensor:
        """∇²f_1(x) u or ∇²g_1(x) u `[d]`, without l2."""
        product: Tensor = grad(lambda v: grad(self._loss(part))(v) @ u)(x)
        return product

    def total(self, x: Tensor) -> Tensor:
        """∇h_1(x) `[d]`."""
        return sum((self.gradient(part, x) for part in self.parts), start=self.l2 * x)

    def prox(self, linear: Tensor, centre: Tensor, rho: float, key: Tensor) -> Solved:
        """argmin_v ⟨linear, v⟩ + (ρ / 2) ‖v - centre‖² + h_1(v), started at the centre.

        Raises FedoptError where the subproblem has no minimum: ρ below the most negative curvature of h_1.
        """
        solver = self.solving.solver
        if solver == "optimizer":
            return self._by_optimizer(linear, centre, rho, key)
        quadratic = self._quadratic()
        if quadratic is not None:
            return _exact(quadratic, linear, centre, rho)
        if solver == "exact":
            raise ConfigError(
                "strategy.solver", "'exact' needs a quadratic loss; choose lbfgs, accelerated or optimizer"
            )

        def slope(v: Tensor) -> Tensor:
            return self.total(v) + linear + rho * (v - centre)

        def near(v: Tensor, gradient: Tensor) -> bool:
            return float(gradient.norm()) <= self.solving.tolerance * rho * float((v - centre).norm())

        if solver == "accelerated":
            return _accelerated(slope, near, centre, rho, self.solving.steps)

        def value(v: Tensor) -> Tensor:
            each = sum((self._loss(part)(v) for part in self.parts), start=0.5 * self.l2 * v @ v)
            return each + linear @ v + 0.5 * rho * (v - centre).square().sum()

        return _lbfgs(value, near, centre, self.solving.steps)

    def _loss(self, part: str) -> Callable[[Tensor], Tensor]:
        split, problem = self.parts[part], self.problem

        def loss(x: Tensor) -> Tensor:
            return _mean_loss(problem, x, split, torch.arange(split.y.shape[0]))

        return loss

    def _quadratic(self) -> Quadratic | None:
        """h_1 where it is quadratic and that is made use of; found once for the same samples."""
        problem, d = self.problem, self.problem.d
        if d > LARGEST or self.solving.solver not in ("auto", "exact"):
            return None
        mark = (self.l2, *(id(split.x) for split in self.parts.values()))
        owner = next(iter(self.parts.values())).x
        known: dict[Any, Quadratic | None] = _KNOWN.setdefault(owner, {})
        if mark not in known:
            known[mark] = self._measured(problem, d)
        return known[mark]

    def _measured(self, problem: Problem, d: int) -> Quadratic | None:
        zero = torch.zeros(d, dtype=problem.dtype)
        word = keys.fold(keys.root(0), "quadratic")
        far = keys.normal(keys.fold(word, "point"), d, dtype=problem.dtype)
        u = keys.normal(keys.fold(word, "direction"), d, dtype=problem.dtype)
        here, there = (sum((self.curvature(p, x, u) for p in self.parts), start=self.l2 * u) for x in (zero, far))
        rounding = 1e-9 if problem.dtype == torch.float64 else 1e-4
        if not float((here - there).norm()) <= rounding * float(here.norm()):
            return None
        eye = torch.eye(d, dtype=problem.dtype)
        parts = {}
        for part in self.parts:
            rows = torch.stack([self.curvature(part, zero, e) for e in eye]).double()
            parts[part] = (0.5 * (rows + rows.T), self._slope(part, zero).double())
        hessian = sum((h for h, _ in parts.values()), start=self.l2 * eye.double())
        values, vectors = torch.linalg.eigh(hessian)
        slope = torch.stack([at_zero for _, at_zero in parts.values()]).sum(dim=0)
        return Quadratic(values, vectors, slope, parts)

    def _by_optimizer(self, linear: Tensor, centre: Tensor, rho: float, key: Tensor) -> Solved:
        """`steps` of the server optimizer on A, each on a mini-batch of every part of h_1."""
        spec, v = self.problem.network.spec, centre
        state = self.optimizer.init(spec.unflatten(v))
        for k in range(self.solving.steps):
            slope = self.l2 * v + linear + rho * (v - centre)
            for part, split in self.parts.items():
                held = split.y.shape[0]
                word = keys.fold(key, "prox", part, k)
                rows = keys.sample(word, held, min(self.solving.batch, held))
                slope = slope + grad(partial(_mean_loss, self.problem), argnums=0)(v, split, rows)
            numbers = hyper_parameters(self.optimizer, k, self.problem.dtype)
            # plain descent then takes the proximal term implicitly, so that a large ρ does not ask for a small step
            slope = slope / (1.0 + rho * numbers["lr"]) if "lr" in numbers else slope
            params, state = self.optimizer.update(spec.unflatten(slope), state, spec.unflatten(v), numbers)
            v = spec.flatten(params)
        return Solved(v, self.solving.steps, float("nan"))


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the tensor of the server's samples."""


def home(problem: Problem, parts: Groups, l2: float, solving: Solving, optimizer: Optimizer) -> Home:
    """The server's part. Raises ConfigError where it has no samples, or where the model has buffers."""
    if "buffers" in problem.initial:
        raise ConfigError("model", "a model with buffers (batch normalisation) has no gradient that two places share")
    names = ("f", "g") if parts.two else ("f",)
    return Home(problem, {name: parts.home(problem, name) for name in names}, l2, solving, optimizer)


def _mean_loss(problem: Problem, x: Tensor, split: Split, rows: Tensor) -> Tensor:
    total = x.new_zeros(())
    params = problem.network.spec.unflatten(x)
    for some in rows.split(problem.evaluation_batch):
        ones = torch.ones(some.numel(), dtype=torch.bool)
        batch = {"x": split.x[some].contiguous(memory_format=problem.layout), "y": split.y[some], "mask": ones}
        loss, _ = problem.objective(params, {}, batch, keys.root(0))
        total = total + loss * some.numel()
    return total / rows.numel()


def _exact(h: Quadratic, linear: Tensor, centre: Tensor, rho: float) -> Solved:
    lowest = float(h.values[0]) + rho
    if lowest <= 0:
        raise FedoptError(
            f"the server's subproblem has no minimum: its own objective has curvature {float(h.values[0]):.3g} in"
            f" places, and the proximal term only {rho:.3g}; set strategy.delta higher (or theta lower)"
        )
    right = rho * centre.double() - linear.double() - h.slope
    point = h.vectors @ ((h.vectors.T @ right) / (h.values + rho))
    return Solved(point.to(centre.dtype), 1, 0.0)


def _accelerated(
    slope: Callable[[Tensor], Tensor], near: Callable[[Tensor, Tensor], bool], centre: Tensor, rho: float, most: int
) -> Solved:
    """Nesterov's method for strong convexity ρ; the smoothness is found by what gradients show, and only grows."""
    x, y, smooth = centre, centre, 2.0 * rho
    at_y = slope(y)
    for k in range(most):
        while True:
            after = y - at_y / smooth
            at_after = slope(after)
            moved = after - y
            ratio = float((at_after - at_y).norm()) / max(float(moved.norm()), torch.finfo(x.dtype).tiny)
            if ratio <= 2.0 * smooth:
                break
            smooth *= 2.0
        smooth = max(smooth, ratio)
        if near(after, at_after):
            return Solved(after, k + 1, float(at_after.norm()))
        momentum = (1.0 - (rho / smooth) ** 0.5) / (1.0 + (rho / smooth) ** 0.5)
        x, y = after, after + momentum * (after - x)
        at_y = slope(y)
    return Solved(x, most, float(slope(x).norm()))


def _lbfgs(
    value: Callable[[Tensor], Tensor], near: Callable[[Tensor, Tensor], bool], centre: Tensor, most: int
) -> Solved:
    """Limited-memory BFGS with a strong Wolfe line search, a few steps at a time until the rule holds."""
    v = centre.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v], max_iter=4, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0
    )
    done, best, stuck = 0, float("inf"), 0

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = value(v)
            loss.backward()
        return loss

    norm = 0.0
    while done < most and stuck < 5:  # what rounding leaves does not get smaller
        optimizer.step(closure)
        closure()
        assert v.grad is not None
        norm = float(v.grad.norm())
        done += 4
        if near(v.detach(), v.grad):
            break
        stuck = 0 if norm < 0.9 * best else stuck + 1
        best = min(best, norm)
    return Solved(v.detach().clone(), done, norm)
