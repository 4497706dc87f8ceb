"""Multinomial logistic regression."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from fedopt.registry import declare


@declare(reference="McCullagh and Nelder 1989, Generalized Linear Models, chapter 5")
def logistic(*, inputs: tuple[int, ...], classes: int, bias: bool = True) -> nn.Module:
    """One linear layer on the flattened sample: logits = W x + b.

    inputs: any shape. bias: whether there is a b.
    """
    linear = nn.Linear(math.prod(inputs), classes, bias=bias)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=linear))
