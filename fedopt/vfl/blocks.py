"""A party's half of the coupling: the outputs of its bottom network, and the adjoint of that map."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.func import vjp

from fedopt.problem import Problem
from fedopt.registry import ConfigError


class Block(NamedTuple):
    """g(x; A) and its adjoint, for features `A [m, ...]`, weights `x [d]` and multipliers `y [m c]`."""

    forward: Callable[[Tensor, Tensor], Tensor]
    """`(x, A) -> g(x; A)  [m c]`"""
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]
    """`(x, A, y) -> (∂g/∂x)ᵀ y  [d]`, which is Aᵀ y where g is linear."""
    linear: bool
    """g(x) - g(w) = g(x - w), and the adjoint is the same at every x."""


def block(problem: Problem) -> Block:
    """The coupling of a party whose bottom network is that of the problem.

    Raises ConfigError for a network with buffers (statistics of batch normalisation), which no party could share.
    """
    network = problem.network
    if "buffers" in problem.initial:
        raise ConfigError("model", "a bottom network without buffers is needed; take one without batch normalisation")
    if is_linear(network.training):
        outputs = network.spec.shapes[0][0]

        def product(x: Tensor, features: Tensor) -> Tensor:
            # transposed, since products of many tall matrices with a vector each are slow, and with a row are not
            return (x.reshape(outputs, -1) @ features.flatten(1).T).T.flatten()

        def adjoint(x: Tensor, features: Tensor, y: Tensor) -> Tensor:
            return (y.reshape(-1, outputs).T @ features.flatten(1)).flatten()

        return Block(product, adjoint, True)

    def forward(x: Tensor, features: Tensor) -> Tensor:
        return network.infer(network.spec.unflatten(x), {}, features).flatten()

    def pull(x: Tensor, features: Tensor, y: Tensor) -> Tensor:
        back: Callable[[Tensor], tuple[Tensor]] = vjp(lambda weights: forward(weights, features), x)[1]
        return back(y)[0]

    return Block(forward, pull, False)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is one linear layer without a bias, on samples that may be flattened before."""
    parts = [part for part in module.modules() if not list(part.children()) and not isinstance(part, nn.Flatten)]
    return len(parts) == 1 and isinstance(parts[0], nn.Linear) and parts[0].bias is None
