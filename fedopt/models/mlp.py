"""A multi-layer perceptron."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from fedopt.models._options import Count
from fedopt.registry import declare

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


@declare(reference="Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors")
def mlp(
    *,
    inputs: tuple[int, ...],
    classes: int,
    hidden: tuple[Count, ...] = (64,),
    activation: Literal["relu", "tanh", "gelu", "silu", "sigmoid"] = "relu",
) -> nn.Module:
    """Fully connected layers on the flattened sample, with an activation between them.

    inputs: any shape. hidden: units of each hidden layer; none gives `logistic`.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    inward = math.prod(inputs)
    for units in hidden:
        layers += [nn.Linear(inward, units), _ACTIVATIONS[activation]()]
        inward = units
    return nn.Sequential(*layers, nn.Linear(inward, classes))
