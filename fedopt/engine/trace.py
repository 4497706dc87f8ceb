"""A recurring computation as a flat graph: the same operations with the same bits, without the Python around them."""

from __future__ import annotations

import logging
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

Leaves = list[Tensor]

PATIENCE = 3
"""Eager calls of a shape before it is traced; tracing costs as much as some hundred of them."""

SLOW, LONG_PATIENCE = 0.05, 24
"""A call that takes so many seconds may be long in operations too, so it has to recur more often."""

PROOFS = 2
"""Sets of values on which a graph has to repeat the eager run before it takes its place."""

KEPT = 64
"""Shapes whose graphs are kept, those used last."""


class Traced:
    """Functions of pytrees of tensors, each run as it is until a shape recurs and then as the graph of its operations.

    The graph calls the operations that the eager run called, so results have the same bits; each graph has to show
    this before it is used, and one that differs is not used. What cannot be traced stays eager.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, _Shape] = OrderedDict()
        self.warming = False
        """Whether anything since this was last set to False ran eagerly and will be traced if it recurs."""

    def __call__(self, name: Hashable, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`; `name` stands for the function, whose results depend on the arguments alone."""
        leaves, spec = pytree.tree_flatten(args)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return function(*args)
        shape = (name, spec, *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        known = self._known.get(shape)
        if known is None:
            known = self._known[shape] = _Shape()
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(shape)
        if known.trusted:
            return pytree.tree_unflatten(list(known.graph(*leaves)), known.result)
        started = time.perf_counter()
        result = function(*args)
        if not known.hopeless:
            self.warming = True
            known.calls += 1
            slow = time.perf_counter() - started > SLOW
            if known.calls >= (LONG_PATIENCE if slow else PATIENCE):
                known.advance(function, spec, leaves, result)
        return result


class _Shape:
    """What is known of one function at one shape of its arguments."""

    def __init__(self) -> None:
        self.calls = 0
        self.hopeless = False
        self.trusted = False
        self.graph: Callable[..., tuple[Tensor, ...]] = tuple
        self.result: Any = None
        self._proofs = 0

    def advance(self, function: Callable[..., Any], spec: Any, leaves: Leaves, result: Any) -> None:
        """Make the graph, and trust it once it has repeated the eager run on `PROOFS` sets of values."""
        wanted, self.result = pytree.tree_flatten(result)
        try:
            if self._proofs == 0:
                self.graph = _graph(function, spec, leaves)
            found = self.graph(*leaves)
        except Exception as error:  # whatever cannot be traced runs as it is
            log.debug("not traced: %s: %s", type(error).__name__, error)
            self.hopeless = True
            return
        if len(found) != len(wanted) or not all(map(_same, found, wanted)):
            log.debug("not traced: the graph does not repeat the eager run")
            self.hopeless = True
            self.graph = tuple
            return
        self._proofs += 1
        self.trusted = self._proofs == PROOFS


def load() -> None:
    """Import what the first trace would import, some 70 MB, so that a limit on memory set afterwards is not for it."""
    _graph(torch.neg, pytree.tree_structure((torch.zeros(1),)), [torch.zeros(1)])


def _graph(function: Callable[..., Any], spec: Any, leaves: Leaves) -> Callable[..., tuple[Tensor, ...]]:
    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(function(*pytree.tree_unflatten(list(leaves), spec))))

    # shapes without memory: a trace runs everything again, and one that fails for want of memory would keep its own
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # a tensor that stands for two arguments at first would stand for both in the graph for good
        apart: Leaves = [fake.from_tensor(leaf.detach()) for leaf in leaves]
        graph = make_fx(flat)(*apart)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return _compiled(graph, apart)


def _compiled(graph: torch.fx.GraphModule, leaves: Leaves) -> Callable[..., tuple[Tensor, ...]]:
    """The graph in torch's own interpreter, which calls an operation several times faster than Python does."""
    if any(leaf.device.type != "cpu" for leaf in leaves):
        return graph  # there, the interpreter would fuse operations, which rounds differently
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(graph, tuple(leaves), check_trace=False)
    called: Callable[..., tuple[Tensor, ...]] = script
    return called


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN repeats NaN
