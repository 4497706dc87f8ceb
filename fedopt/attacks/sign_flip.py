"""Sign flipping: every attacker sends its own honest update the other way round."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import Tensor

from fedopt.registry import declare


@declare(
    reference="Li, Xu, Chen, Giannakis, Ling 2019, 'RSA: Byzantine-Robust Stochastic Aggregation Methods for"
    " Distributed Learning from Heterogeneous Datasets'",
    knowledge="own",
    examples=({}, {"scale": 3.0}),
)
def sign_flip(own: Tensor, *, scale: Annotated[float, pydantic.Field(gt=0.0, allow_inf_nan=False)] = 1.0) -> Tensor:
    """What each attacker would honestly send, with the other sign.

        sent_i = -scale · own_i

    own: the attackers' honest updates `[b, d]`.
    scale: magnification, > 0.
    Returns `[b, d]`.

    Differences from the paper: it flips and magnifies; here the default leaves the length as it is.
    """
    return -scale * own
