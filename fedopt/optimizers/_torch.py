"""Any pair as an ordinary `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedopt import keys
from fedopt.capture import Factors
from fedopt.optimizers import Values, advance, asks, hyper_parameters
from fedopt.registry import parameters
from fedopt.schedules import Schedule
from fedopt.types import FedoptError, Named, Optimizer

_PLAIN = (bool, int, float, str, tuple, NoneType, Schedule)


class TorchOptimizer(torch.optim.Optimizer):
    """See `fedopt.optimizers.as_torch`.

    The state of a group is the pair's state over the group's tensors, under the key `group <index>` of `state`.
    """

    def __init__(self, params: Iterable[Any], optimizer: Optimizer, module: nn.Module | None = None) -> None:
        self.kind = type(optimizer)
        self.factors: dict[int, Factors] = {}
        if "factors" in asks(optimizer):
            if module is None:
                raise FedoptError(
                    f"{self.kind.__name__} asks for the inputs of linear layers: as_torch(params, optimizer, module) is"
                    " needed, with the module that they are the parameters of"
                )
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    part.register_forward_hook(self._listen)
        values = {name: getattr(optimizer, name) for name in parameters(self.kind)}
        # parts that are values with methods (norms, other optimizers) are no state: they stay out of groups
        self.fixed = {name: value for name, value in values.items() if not isinstance(value, _PLAIN)}
        self.fields = tuple(name for name in values if name not in self.fixed)
        # `round` is what a field with a schedule is evaluated at; it travels in the state_dict with the group
        super().__init__(params, {**{name: values[name] for name in self.fields}, "round": 0})

    def __getstate__(self) -> dict[str, Any]:
        # torch's own list of what is pickled and copied knows nothing of the pair
        kept = {"kind": self.kind, "fields": self.fields, "fixed": self.fixed, "factors": {}}
        return {**super().__getstate__(), **kept}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        closure: as always in torch, forgets gradients, computes the loss and its gradients, and returns the loss. It is
            needed, and called at other points too, for optimizers that ask for more than the gradient where they are.
            For one that weights groups of samples it returns the losses `[B]` and groups `[B]` of the samples, and
            leaves gradients alone. Weights are those of the first group of parameters. For one that knows values alone
            it returns the loss, and need not compute gradients; groups take their steps one after the other.

        Raises FedoptError where it is needed and not given, or names a group that there is not.
        """
        pairs = [self._pair(group) for group in self.param_groups]
        if closure is None and any(hasattr(pair, "ahead") or asks(pair) - {"factors"} for pair in pairs):
            raise FedoptError(f"{self.kind.__name__} evaluates the loss by itself: step(closure) is needed")
        moves = any(hasattr(pair, "ahead") or "before" in asks(pair) for pair in pairs)
        named = [
            {str(i): t.detach().clone() if moves else t.detach() for i, t in enumerate(group["params"])}
            for group in self.param_groups
        ]
        states = [self._state(f"group {i}", pair, x) for i, (pair, x) in enumerate(zip(pairs, named, strict=True))]
        numbers = [hyper_parameters(p, g["round"]) for p, g in zip(pairs, self.param_groups, strict=True)]
        ahead = [
            pair.ahead(state, x, h) if hasattr(pair, "ahead") else x
            for pair, state, x, h in zip(pairs, states, named, numbers, strict=True)
        ]
        said: dict[str, Any] = {}
        whole = closure
        if closure is not None and "group_loss" in asks(pairs[0]):
            whole = self._weighted(closure, partial(pairs[0].weights, states[0], numbers[0]), pairs[0].groups, said)
        if closure is not None and "function" in asks(pairs[0]):
            return self._by_values(closure, pairs, states, numbers)
        loss, grads = self._evaluated(whole, ahead if moves else None)
        offers: list[dict[str, Any]] = [{"value": loss} if "value" in asks(pair) else dict(said) for pair in pairs]
        if any("before" in asks(pair) for pair in pairs):
            points = [
                cast(Any, pair).behind(state, x) if "before" in asks(pair) else x
                for pair, state, x in zip(pairs, states, named, strict=True)
            ]
            _, others = self._evaluated(closure, points)
            for pair, offer, before in zip(pairs, offers, others, strict=True):
                offer |= {"before": before} if "before" in asks(pair) else {}
        if any("factors" in asks(pair) for pair in pairs):
            for offer, group in zip(offers, self.param_groups, strict=True):
                found = {str(i): self.factors.get(id(t)) for i, t in enumerate(group["params"])}
                offer["factors"] = {name: each for name, each in found.items() if each is not None}
            self.factors = {}
        for index, (pair, group) in enumerate(zip(pairs, self.param_groups, strict=True)):
            new, after = pair.update(grads[index], states[index], named[index], numbers[index], **offers[index])
            cast(dict[Any, Any], self.state)[f"group {index}"] = after
            for i, t in enumerate(group["params"]):
                t.copy_(new[str(i)] if t.grad is not None else named[index][str(i)])
            group["round"] += 1
        return loss

    def _evaluated(self, closure: Callable[[], Any] | None, points: list[Named] | None) -> tuple[Any, list[Named]]:
        """The loss and the gradients at some points, where the parameters are then; None: where they are."""
        for group, point in zip(self.param_groups, points or [], strict=points is not None):
            for i, t in enumerate(group["params"]):
                t.copy_(point[str(i)])
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept = torch.clone if points is not None else torch.detach  # a second evaluation writes over the first
        return loss.detach() if isinstance(loss, Tensor) else loss, [
            {str(i): torch.zeros_like(t) if t.grad is None else kept(t.grad) for i, t in enumerate(group["params"])}
            for group in self.param_groups
        ]

    def _listen(self, part: nn.Linear, given: tuple[Tensor, ...], output: Tensor) -> None:
        """Of the last pass: the inputs of a layer, and the gradients at its outputs as they come."""
        if not output.requires_grad:
            return
        x = given[0].detach().flatten(0, -2)

        def heard(slope: Tensor) -> None:
            rows = torch.tensor(float(x.shape[0]), dtype=x.dtype, device=x.device)
            self.factors[id(part.weight)] = Factors(x, slope.detach().flatten(0, -2), rows)

        output.register_hook(heard)

    def _by_values(self, closure: Callable[[], Any], pairs: list[Any], states: list[Any], numbers: list[Named]) -> Any:
        """One step of all groups by values of the loss; one group after the other, the others where they were."""
        loss = None
        for index, (pair, group) in enumerate(zip(pairs, self.param_groups, strict=True)):
            params = {str(i): t.detach().clone() for i, t in enumerate(group["params"])}

            def value(point: Named, group: dict[str, Any] = group) -> Tensor:
                for i, t in enumerate(group["params"]):
                    t.copy_(point[str(i)])
                found = closure()
                return found.detach() if isinstance(found, Tensor) else torch.tensor(float(found))

            key = keys.fold(keys.root(index), "directions", group["round"])
            new, after, _, loss = advance(
                pair, _no_gradient, states[index], params, numbers[index], values=Values(value, key)
            )
            cast(dict[Any, Any], self.state)[f"group {index}"] = after
            for i, t in enumerate(group["params"]):
                t.copy_(new[str(i)])
            group["round"] += 1
        return loss

    def _weighted(
        self,
        closure: Callable[[], Any],
        weights: Callable[[Tensor], Tensor],
        groups: int,
        said: dict[str, Any],
    ) -> Callable[[], Any]:
        """A closure as torch knows it, for the weighted sum of the losses; it leaves in `said` what groups have."""

        def evaluate() -> Tensor:
            losses, of = closure()
            if losses.dim() != 1 or of.shape != losses.shape or not 0 <= int(of.min()) <= int(of.max()) < groups:
                raise FedoptError(
                    f"the closure of {self.kind.__name__} returns the losses [B] and the groups [B] of samples, each"
                    f" group below {groups}; shapes {list(losses.shape)} and {list(of.shape)} were given, with groups"
                    f" from {int(of.min())} to {int(of.max())}"
                )
            count = torch.tensor(float(losses.numel()), dtype=losses.dtype, device=losses.device)
            self.zero_grad()
            (weights(count).to(losses.dtype)[of] * losses).sum().backward()
            sums = torch.zeros(groups, dtype=losses.dtype, device=losses.device).index_add(0, of, losses.detach())
            said.update(group_loss=sums, count=count)
            mean: Tensor = losses.detach().mean()
            return mean

        return evaluate

    def _pair(self, group: dict[str, Any]) -> Any:
        return self.kind(**self.fixed, **{name: group[name] for name in self.fields})

    def _state(self, key: str, pair: Optimizer, named: Named) -> Any:
        state = cast(dict[Any, Any], self.state)
        if key not in state:
            return pair.init(named)
        # a field that was 0 so far (momentum) may have been set since, and now asks for a buffer
        return {**pair.init(named), **state[key]} if isinstance(state[key], dict) else state[key]


def _no_gradient(point: Named) -> tuple[Named, Tensor]:
    raise AssertionError("an optimizer by values asked for a gradient")
