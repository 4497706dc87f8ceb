"""Any pair as an ordinary `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from fedopt.optimizers import hyper_parameters
from fedopt.registry import parameters
from fedopt.types import Named, Optimizer


class TorchOptimizer(torch.optim.Optimizer):
    """See `fedopt.optimizers.as_torch`.

    The state of a group is the pair's state over the group's tensors, under the key `group <index>` of `state`.
    """

    def __init__(self, params: Iterable[Any], optimizer: Optimizer) -> None:
        self.kind = type(optimizer)
        self.fields = tuple(parameters(self.kind))
        # `round` is what a field with a schedule is evaluated at; it travels in the state_dict with the group
        super().__init__(params, {**{name: getattr(optimizer, name) for name in self.fields}, "round": 0})

    def __getstate__(self) -> dict[str, Any]:
        # torch's own list of what is pickled and copied knows nothing of the pair
        return {**super().__getstate__(), "kind": self.kind, "fields": self.fields}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            self._step_group(f"group {index}", group)
        return loss

    def _step_group(self, key: str, group: dict[str, Any]) -> None:
        pair = self.kind(**{name: group[name] for name in self.fields})
        tensors: list[Tensor] = group["params"]
        named: Named = {str(i): t.detach() for i, t in enumerate(tensors)}
        grads = {str(i): torch.zeros_like(t) if t.grad is None else t.grad for i, t in enumerate(tensors)}
        state = cast(dict[Any, Any], self.state)
        if key not in state:
            state[key] = pair.init(named)
        elif isinstance(state[key], dict):
            # a field that was 0 so far (momentum) may have been set since, and now asks for a buffer
            state[key] = {**pair.init(named), **state[key]}
        new, state[key] = pair.update(grads, state[key], named, hyper_parameters(pair, group["round"]))
        for i, t in enumerate(tensors):
            if t.grad is not None:
                t.copy_(new[str(i)])
        group["round"] += 1
