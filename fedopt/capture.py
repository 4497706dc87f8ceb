"""What goes into linear layers and what comes back to their outputs: the two factors of their gradients.

A weight `[m, n]` that meets inputs X `[k, n]` and whose outputs have the gradients S `[k, m]` has the gradient Sᵀ X;
k counts samples, and positions within them. S is the gradient with respect to a zero that is added to the outputs, so
that all of it is a pure function, and stacks under vmap.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from fedopt.types import FedoptError, Named


class Factors(NamedTuple):
    """Of one layer."""

    inputs: Tensor
    """X `[k, n]`, rows of padding are 0."""
    slopes: Tensor
    """S `[k, m]`."""
    rows: Tensor
    """How many of the k are of samples."""


class Capture:
    """A copy of a module whose linear layers add what they are given to their outputs, and say what went in."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        self._now = threading.local()  # lanes of clients run side by side
        self.layers = [name for name, part in self.module.named_modules() if isinstance(part, nn.Linear)]
        for name in self.layers:
            self.module.get_submodule(name).register_forward_hook(self._hook(name))

    def __call__(self, forward: Callable[[nn.Module], Any], taps: Named | None) -> tuple[Any, Named]:
        """What `forward(module)` gives with `taps` added, and the inputs by layer.

        Without taps nothing is added, and in place of inputs there are empty tensors of the outputs' shapes.
        Raises FedoptError where a layer is used more than once.
        """
        self._now.taps, self._now.seen = taps, {}
        try:
            return forward(self.module), self._now.seen
        finally:
            del self._now.taps, self._now.seen

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not hasattr(self._now, "seen"):
                return None
            if name in self._now.seen:
                raise FedoptError(
                    f"layer '{name}' is used more than once in a pass, so that its gradient has more than two factors;"
                    " choose another optimizer.name, or statistics = 'gradients'"
                )
            if self._now.taps is None:
                self._now.seen[name] = torch.empty(output.shape, device="meta")
                return None
            self._now.seen[name] = given[0]
            tapped: Tensor = output + self._now.taps[name].reshape(output.shape)
            return tapped

        return hook


def layered(
    capture: Capture,
    objective: Callable[[nn.Module, Named], tuple[Tensor, Any]],
    params: Named,
    mask: Tensor,
    shapes: dict[str, tuple[int, ...]],
) -> tuple[Named, Tensor, Any, dict[str, Factors]]:
    """Gradient, value and the rest of an objective `(module, params) -> (value, rest)`, and factors by weight.

    mask `[B]`: 1 for a sample, 0 for padding. shapes: of the outputs for one sample, by layer.
    """
    batch = mask.shape[0]
    taps = {
        name: torch.zeros(batch, *shape, dtype=next(iter(params.values())).dtype, device=mask.device)
        for name, shape in shapes.items()
    }

    def value(params: Named, taps: Named) -> tuple[Tensor, tuple[Any, Named]]:
        (loss, rest), inputs = capture(lambda module: objective(module, params), taps)
        return loss, (rest, {name: x.detach() for name, x in inputs.items()})

    (grads, slopes), (loss, (rest, inputs)) = grad_and_value(value, argnums=(0, 1), has_aux=True)(params, taps)
    found = {}
    for name, slope in slopes.items():
        if name not in inputs or f"{name}.weight" not in params:
            continue
        x, s = inputs[name].reshape(batch, -1, inputs[name].shape[-1]), slope.reshape(batch, -1, slope.shape[-1])
        real = mask.to(x.dtype)
        found[f"{name}.weight"] = Factors(
            (x * real[:, None, None]).flatten(0, 1), s.flatten(0, 1), real.sum() * x.shape[1]
        )
    return grads, loss, rest, found
