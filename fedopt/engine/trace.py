"""A recurring computation as a flat graph: the same operations with the same bits, without the Python around them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fedopt.engine.lower import lower

log = logging.getLogger(__name__)

Leaves = list[Tensor]

Tree = Any
"""How tensors are nested: None for a tensor, else (kind of container, names or None, trees of its members)."""

PATIENCE = 3
"""Eager calls of a shape before it is traced; tracing takes as long as some of them."""

PROOFS = 2
"""Sets of values on which a graph has to repeat the eager run before it takes its place."""

KEPT = 64
"""Shapes whose graphs are kept, those used last."""


class Traced:
    """Functions of pytrees of tensors, each run as it is until a shape recurs and then as the graph of its operations.

    The graph calls the operations that the eager run called, so results have the same bits; each graph has to show
    this before it is used, and one that differs is not used. What cannot be traced stays eager.

    Threads may call: graphs run side by side, eager calls one at a time, for a module is no place for two at once.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, _Shape] = OrderedDict()
        self._alone = threading.RLock()
        self.warming = False
        """Whether anything since this was last set to False ran eagerly and will be traced if it recurs."""

    def __call__(self, name: Hashable, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`; `name` stands for the function, whose results depend on the arguments alone."""
        leaves: Leaves = []
        try:
            tree = _flatten(args, leaves)
        except TypeError:
            with self._alone:
                return function(*args)
        shape = (name, tree, *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        with self._alone:
            known = self._known.get(shape)
            if known is None:
                known = self._known[shape] = _Shape()
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(shape)
            if not known.trusted:
                return self._eager(known, function, args, tree, leaves)
        return _unflatten(known.result, iter(known.graph(*leaves)))

    def _eager(self, known: _Shape, function: Callable[..., Any], args: Any, tree: Tree, leaves: Leaves) -> Any:
        result = function(*args)
        if not known.hopeless:
            self.warming = True
            known.calls += 1
            if known.calls >= PATIENCE:
                known.advance(function, tree, leaves, result)
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

    def advance(self, function: Callable[..., Any], tree: Tree, leaves: Leaves, result: Any) -> None:
        """Make the graph, and trust it once it has repeated the eager run on `PROOFS` sets of values."""
        wanted: Leaves = []
        try:
            self.result = _flatten(result, wanted)
            if self._proofs == 0:
                self.graph = _graph(function, tree, leaves)
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
    argument = torch.zeros(1)
    _graph(torch.neg, _flatten((argument,), []), [argument])


def _flatten(value: Any, leaves: Leaves) -> Tree:
    """Put the tensors of a nest of tuples, lists and dicts into `leaves` and say how they are nested.

    What torch's own pytree does, several times faster, for these containers alone. Raises TypeError for others.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        leaves.append(value)
        return None
    if kind is dict:
        return kind, tuple(value), tuple([_flatten(one, leaves) for one in value.values()])
    if kind is tuple or kind is list or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        return kind, None, tuple([_flatten(one, leaves) for one in value])
    raise TypeError(f"neither a tensor nor a tuple, list or dict: {kind.__name__}")


def _unflatten(tree: Tree, leaves: Iterator[Tensor]) -> Any:
    """The nest that `_flatten` took apart."""
    if tree is None:
        return next(leaves)
    kind, names, parts = tree
    values = [_unflatten(part, leaves) for part in parts]
    if kind is dict:
        return dict(zip(names, values, strict=True))
    return values if kind is list else kind(values) if kind is tuple else kind(*values)


def _graph(function: Callable[..., Any], tree: Tree, leaves: Leaves) -> Callable[..., tuple[Tensor, ...]]:
    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        found: Leaves = []
        _flatten(function(*_unflatten(tree, iter(leaves))), found)
        return tuple(found)

    # a trace needs shapes alone, neither memory nor time for the values
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # a tensor that stands for two arguments at first would stand for both in the graph for good
        apart: Leaves = [fake.from_tensor(leaf.detach()) for leaf in leaves]
        graph = make_fx(flat)(*apart)
        graph.graph.eliminate_dead_code()
        graph.recompile()
    if any(leaf.device.type != "cpu" for leaf in leaves):
        return graph  # there, torch's interpreter would fuse operations, which rounds differently
    return lower(graph)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN repeats NaN
