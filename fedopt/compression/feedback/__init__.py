"""Memories around a codec: what a client keeps of what it could not say.

A feedback is a frozen dataclass of options with two methods, pure functions that work under vmap:

    start(d) -> dict of tensors, what a client has kept before its first exchange
    step(x [d], kept, code, *, ...offers) -> Sent

`code(v)` gives what the other side makes of v: decode(encode(v)). It is to be called once, and its message is the
exchange's. Offers:

    shared      a key that all clients of the exchange have
    error       what the codec promises, E ‖C(x) - x‖² <= error ‖x‖²; None where it promises nothing

What a feedback says about itself, with `fedopt.registry.declare`:

    needs       kinds of codec under which it is known to converge
    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the feedback lawfully breaks, each with the reason

The server knows of each client what the client's memory knows of the server, so whatever it makes of a message is the
client's row, and every rule and attack works on rows as without compression.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fedopt.registry import Component, ConfigError, Registry, facts, validate
from fedopt.types import Kind, Named

OFFERS = ("shared", "error")
registry = Registry("feedback", __name__)

Code = Callable[[Tensor], Tensor]


class Sent(NamedTuple):
    """An exchange of one client."""

    row: Tensor
    """What the server takes for the client's vector `[d]`."""
    kept: Named
    """What the client keeps for the next time."""
    whole: Tensor | None = None
    """A bool: x itself was sent, as it is, in place of the coded message; None: never."""


class Feedback(NamedTuple):
    """A memory with its options."""

    name: str
    needs: frozenset[Kind]
    asks: frozenset[str]
    """The offers that it names."""
    start: Callable[[int], Named]
    step: Callable[..., Sent]
    """`(x [d], kept, code, **offers) -> Sent`"""


def build(name: str, options: Mapping[str, Any], where: str = "compression.feedback") -> Feedback:
    """The feedback of this name with these options; `where` is their config path, for messages.

    Raises ConfigError for an unknown name or option, a missing option, and one of another type or out of range.
    """
    return lift(registry.get(name, f"{where}.name"), options, where)


def lift(component: Component, options: Mapping[str, Any], where: str = "compression.feedback") -> Feedback:
    """A class of a feedback, with its options. Raises ConfigError as `build` does."""
    name, given = component.__name__, validate(component, options, where)
    try:
        memory = component(**given)
    except ValueError as refusal:
        raise ConfigError(where, f"{name}: {refusal}") from None
    asks = frozenset(OFFERS) & inspect.signature(memory.step).parameters.keys()

    def step(x: Tensor, kept: Named, code: Code, **offers: Any) -> Sent:
        sent: Sent = memory.step(x, kept, code, **{offer: offers[offer] for offer in asks})
        return sent

    return Feedback(name, frozenset(facts(component).get("needs", ())), asks, memory.start, step)
