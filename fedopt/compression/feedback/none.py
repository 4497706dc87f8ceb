"""No memory: what a codec loses is lost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedopt.compression.feedback import Code, Sent
from fedopt.registry import declare
from fedopt.types import Named


@declare(needs=("exact", "unbiased"))
@dataclass(frozen=True)
class none:
    """row = C(x).

    An unbiased codec adds noise that step sizes have to bear; a biased one may lead elsewhere or diverge.
    """

    def start(self, numel: int) -> Named:
        return {}

    def step(self, x: Tensor, kept: Named, code: Code) -> Sent:
        return Sent(code(x), {})
