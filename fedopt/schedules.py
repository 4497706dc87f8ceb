"""Numbers that follow a schedule over rounds.

Any option of type `Scalar` is a number or a schedule. In a config file:

    lr = 0.1
    lr = { schedule = "cosine", start = 0.1, end = 0.001, rounds = 100 }

A schedule is a pure function of the round (0 for the first). The server evaluates it and sends the value, so clients
never need to know the round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic

from fedopt.registry import ConfigError, nearest, validate


def constant(round: int, *, value: float) -> float:
    """value"""
    return value


def linear(round: int, *, start: float, end: float, rounds: int) -> float:
    """start + (end - start) min(t / rounds, 1)"""
    return start + (end - start) * min(round / rounds, 1.0)


def cosine(round: int, *, start: float, end: float = 0.0, rounds: int) -> float:
    """end + (start - end) (1 + cos(π min(t / rounds, 1))) / 2; Loshchilov and Hutter 2017, eq. 5"""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(round / rounds, 1.0)))


def exponential(round: int, *, start: float, decay: float, every: int = 1) -> float:
    """start decay^floor(t / every)"""
    return start * decay ** (round // every)


def steps(round: int, *, values: list[float], at: list[int]) -> float:
    """values[k], where k counts the rounds in `at` that are reached; one value more than entries of `at`"""
    return values[min(sum(round >= boundary for boundary in at), len(values) - 1)]


def wsd(round: int, *, peak: float, end: float = 0.0, warmup: int, stable: int, decay: int) -> float:
    """Warm-up, stable, decay: linear from 0 to peak, constant, linear to end; Hu et al. 2024, section 4.2"""
    if round < warmup:
        return peak * (round + 1) / warmup
    if round < warmup + stable:
        return peak
    return peak + (end - peak) * min((round - warmup - stable + 1) / decay, 1.0)


SHAPES: dict[str, Callable[..., float]] = {f.__name__: f for f in (constant, linear, cosine, exponential, steps, wsd)}


@dataclass(frozen=True)
class Schedule:
    """A named shape with its options; `schedule(round)` is the value in that round."""

    shape: str
    options: tuple[tuple[str, Any], ...]

    def __call__(self, round: int) -> float:
        return SHAPES[self.shape](round, **dict(self.options))


def parse(value: Any) -> float | Schedule:
    """A table with a key `schedule` becomes a Schedule, a number a float."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, Mapping):
        raise ValueError("a number or a table { schedule = ..., ... } is needed")
    given = dict(value)
    shape = given.pop("schedule", None)
    if shape not in SHAPES:
        raise ValueError(f"no schedule '{shape}'.{nearest(str(shape), SHAPES)} Known: {', '.join(SHAPES)}")
    try:
        options = validate(SHAPES[shape], given, f"schedule '{shape}'")
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return Schedule(shape, tuple(options.items()))


Scalar = Annotated[float | Schedule, pydantic.PlainValidator(parse)]
"""A number, or a schedule over rounds."""


def at(value: float | Schedule, round: int) -> float:
    """The number that `value` stands for in this round."""
    return value(round) if isinstance(value, Schedule) else value
