"""A graph of ATen operations as a function of torch's own interpreter, which runs it without Python.

torch makes such functions by compiling source or by running a program once more under its tracer. Here the graph is
known already, so it is written down node by node: nothing is computed, and no memory is needed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_NUMBERS: dict[Any, int] = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
    torch.strided: 0,
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
}
"""Of c10::ScalarType, c10::Layout and c10::MemoryFormat, as which the interpreter knows these constants."""


def lower(module: fx.GraphModule) -> Callable[..., tuple[Tensor, ...]]:
    """The function (tensors) -> tuple of tensors that the module computes.

    module: of operations of ATen on tensors, as `make_fx` gives it, with the shapes in `meta["val"]`.

    Raises TypeError for anything else, and RuntimeError where the interpreter does not know an operation.
    """
    graph: Any = torch._C.Graph()
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = graph.addInput(node.name)
        elif node.op == "get_attr":
            values[node] = graph.insertConstant(_constant(getattr(module, node.target)))
        elif node.op == "call_function" and node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            values[node] = _operation(graph, node, values)
        elif node.op == "output":
            results = [values[result] for result in node.args[0]]
            made = _insert(graph, "prim::TupleConstruct", results)[0]
            made.setType(torch._C.TupleType([torch._C.TensorType.get()] * len(results)))
            graph.registerOutput(made)
        else:
            raise TypeError(f"{node.op} {node.target} is no operation on tensors")
    graph.lint()
    function: Callable[..., tuple[Tensor, ...]] = torch._C._create_function_from_graph("fedopt", graph)
    if any(node.target == torch.ops.aten.mkldnn_rnn_layer.default for node in module.graph.nodes):
        # this one looks at whether gradients are enabled to know whether to give what its own gradient needs
        return torch.enable_grad()(function)
    return function


def _operation(graph: Any, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of an operation; a list where it has several."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    inputs = []
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args) and not argument.kwarg_only:
            given: Any = node.args[place]
        else:
            given = node.kwargs.get(argument.name, argument.default_value)
        inputs.append(_value(graph, given, argument.type, values))
    outputs = _insert(graph, schema.name, inputs, len(schema.returns))
    for output, returned in zip(outputs, schema.returns, strict=True):
        output.setType(returned.type)
    if len(outputs) != 1:
        return outputs
    if isinstance(schema.returns[0].type, torch._C.ListType):
        outputs = _insert(graph, "prim::ListUnpack", outputs, len(node.meta["val"]))
        for output in outputs:
            output.setType(torch._C.TensorType.get())
        return outputs
    return outputs[0]


def _value(graph: Any, given: Any, wanted: Any, values: dict[fx.Node, Any]) -> Any:
    """An argument as a value of the graph."""
    if isinstance(given, fx.Node):
        return values[given]
    if isinstance(given, list | tuple) and (not given or any(isinstance(one, fx.Node) for one in given)):
        kind = wanted.getElementType() if isinstance(wanted, torch._C.OptionalType) else wanted
        made = _insert(graph, "prim::ListConstruct", [_value(graph, one, None, values) for one in given])[0]
        made.setType(kind)
        return made
    return graph.insertConstant(_constant(given))


def _constant(given: Any) -> Any:
    if isinstance(given, torch.dtype | torch.layout | torch.memory_format):
        return _NUMBERS[given]
    if isinstance(given, Tensor) and type(given) is not Tensor:
        raise TypeError(f"a {type(given).__name__} is no constant")
    return list(given) if isinstance(given, tuple) else given


def _insert(graph: Any, name: str, inputs: list[Any], outputs: int = 1) -> list[Any]:
    made = graph.create(name, inputs, outputs)
    graph.insertNode(made)
    return list(made.outputs())
