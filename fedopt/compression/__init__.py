"""Codecs: `[d] -> code -> [d]`, with real bytes. Usable alone: `build("topk", {"share": 0.01}).encode(x, key)`.

A codec is a frozen dataclass of options with three methods:

    compress(x [d], key, *, ...offers) -> dict of tensors of fixed shapes; it works under vmap
    restore(code, d) -> [d]
    layout(d) -> {name: (field, entries)}, what each tensor of the code is on the wire, in the order of the bytes

Bytes, their exact length and their reading follow from the layout; the fields are `Bits`, `Floats`, `Sparse` and
`Levels`. Where one vector alone can be compressed faster than a row among others, `alone(x, key, *, ...offers)` does
it, to a code of the same bytes; a codec that can restore into a buffer takes it as `out`. One whose next code depends
on its last has `start(d)`, a dict of tensors, and `after(code, d)`, the same from its last code, and asks for `kept`.
Offers:

    shared      a key that all clients of the exchange have
    rank        the place of this client among those of the exchange, int64
    kept        what `start` or the last `after` gave

A codec that knows layers has the field `shapes`; where no option gives it, `build` fills in the shapes of the model.

What a codec says about itself, with `fedopt.registry.declare`; each fact may be a function of the options:

    kind        "exact" (comes back bit by bit), "unbiased" (E decode(encode(x)) = x), "contraction"
                (E ‖decode(encode(x)) - x‖² <= (1 - δ) ‖x‖², δ > 0) or "biased"; the contract tests measure it
    error       (d, ...options) -> the largest E ‖decode(encode(x)) - x‖² / ‖x‖²; for a contraction it is 1 - δ
    zeros       True where entries that are 0 stay 0, so that it may follow a codec that leaves few
    examples    options under which the contract tests run, one mapping after another
    exceptions  contract laws that the codec lawfully breaks, each with the reason
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from fedopt.compression._fields import Bits, Field, Floats, Kept, Levels, Reader, Sparse, dense
from fedopt.registry import Component, ConfigError, Registry, facts, parameters, validate
from fedopt.types import Codec, FedoptError, Kind, Named

__all__ = ("Bits", "Field", "Floats", "Kept", "Levels", "Sparse", "build", "dense", "lift", "registry", "stated")

OFFERS = ("shared", "rank", "kept")
Shapes = tuple[tuple[int, ...], ...]
registry = Registry("compression", __name__)


def build(name: str, options: Mapping[str, Any], where: str = "compression", shapes: Shapes | None = None) -> Codec:
    """The codec of this name with these options; `where` is their config path, for messages.

    shapes: of the tensors that make up a vector, for codecs that know layers.

    Raises ConfigError for an unknown name or option, a missing option, and one of another type or out of range.
    """
    return lift(registry.get(name, f"{where}.name"), options, where, shapes)


def lift(
    component: Component, options: Mapping[str, Any], where: str = "compression", shapes: Shapes | None = None
) -> Codec:
    """A class of a codec, with its options, as a Codec. Raises ConfigError as `build` does."""
    name, given = component.__name__, validate(component, options, where)
    if shapes is not None and "shapes" in parameters(component):
        given.setdefault("shapes", shapes)
    try:
        codec = component(**given)
    except ValueError as refusal:
        raise ConfigError(where, f"{name}: {refusal}") from None
    if not all(callable(getattr(codec, method, None)) for method in ("compress", "restore", "layout")):
        raise ConfigError(f"{where}.name", f"{name} has to have the methods compress, restore and layout")
    kind = stated(codec, "kind")
    if kind not in get_args(Kind):
        raise ConfigError(f"{where}.name", f"{name} declares the kind {kind!r}; one of {get_args(Kind)} is needed")
    asks = frozenset(OFFERS) & inspect.signature(codec.compress).parameters.keys()

    def offered(offers: Mapping[str, Any]) -> dict[str, Any]:
        absent = asks - offers.keys()
        if absent:
            raise FedoptError(f"{name} needs {', '.join(sorted(absent))}, which is not on offer here")
        return {offer: offers[offer] for offer in asks}

    def compress(x: Tensor, key: Tensor, **offers: Any) -> Named:
        code: Named = codec.compress(x, key, **offered(offers))
        return code

    def size(code: Named, numel: int) -> Tensor:
        sizes = [field.size(code[part]) for part, (field, _) in codec.layout(numel).items()]
        return torch.stack(sizes).sum(dim=0)

    def write(code: Named, numel: int) -> bytes:
        return b"".join(field.write(code[part]) for part, (field, _) in codec.layout(numel).items())

    def encode(x: Tensor, key: Tensor, **offers: Any) -> bytes:
        if x.dim() != 1 or not x.is_floating_point():
            raise FedoptError(f"a vector of floats [d] is needed, {list(x.shape)} of {x.dtype} was given")
        if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
            raise FedoptError(f"finite entries are needed, {int((~torch.isfinite(x)).sum())} are NaN or Inf")
        if not x.numel():
            return b""
        code = getattr(codec, "alone", codec.compress)(x.detach(), key, **offered(offers))
        return write(code, x.numel())

    def decode(payload: bytes, numel: int, out: Tensor | None = None) -> Tensor:
        reader = Reader(payload)
        if not numel:
            reader.end()
            return torch.zeros(0) if out is None else out
        code = {part: field.read(reader, entries) for part, (field, entries) in codec.layout(numel).items()}
        reader.end()
        if out is None:
            restored: Tensor = codec.restore(code, numel)
            return restored
        into = {"out": out} if "out" in inspect.signature(codec.restore).parameters else {}
        found = codec.restore(code, numel, **into)
        return out if found is out else out.copy_(found)

    known: dict[int, float | None] = {}  # asked for in every exchange, and read from signatures

    def error(numel: int) -> float | None:
        if numel not in known:
            known[numel] = promised(codec, numel)
        return known[numel]

    def nothing(*given: Any) -> Named:
        return {}

    start, after = getattr(codec, "start", nothing), getattr(codec, "after", nothing)
    return Codec(name, kind, asks, compress, codec.restore, size, write, encode, decode, error, start, after)


def stated(codec: Any, fact: str, otherwise: Any = None) -> Any:
    """A fact that a codec declares of itself, which may depend on its options."""
    value = facts(type(codec)).get(fact, otherwise)
    return value(**_named(value, codec)) if callable(value) else value


def promised(codec: Any, numel: int) -> float | None:
    """The error that a codec declares for vectors of some length."""
    error = facts(type(codec)).get("error")
    found = None if error is None else error(numel, **_named(error, codec))
    return None if found is None else float(found)


def _named(function: Component, codec: Any) -> dict[str, Any]:
    """Those options of the codec that the function has a parameter for."""
    return {n: getattr(codec, n) for n in inspect.signature(function).parameters if hasattr(codec, n)}
