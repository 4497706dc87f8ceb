"""Networks: each a function or class `name(*, inputs, classes, ...options) -> torch.nn.Module`.

The engine supplies what it knows from the data, to whoever names it: `inputs` (shape of one sample), `classes`
(number of outputs) and `vocabulary` (number of tokens, for token ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedopt import keys
from fedopt.models._dropout import KeyedDropout, key_dropout
from fedopt.registry import ConfigError, Registry, parameters

__all__ = ["KeyedDropout", "build", "key_dropout", "registry", "stackable"]

registry = Registry("models", __name__, offers=("inputs", "classes", "vocabulary"))


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    inputs: tuple[int, ...],
    classes: int,
    vocabulary: int | None,
    key: Tensor,
    dtype: torch.dtype,
    where: str = "model",
) -> nn.Module:
    """The network of this name for data of this kind, in training mode, the same for the same `key`.

    Every `nn.Dropout` in it is replaced by `KeyedDropout`.

    inputs: shape of one sample. vocabulary: number of tokens, where samples are token ids. key: int64 scalar.
    where: config path of the options, for messages.

    Raises ConfigError for unknown names and options, and where the network cannot be built for such data.
    """
    given = registry.validate(name, options, where)
    component = registry.get(name)
    offers = {"inputs": tuple(inputs), "classes": classes, "vocabulary": vocabulary}
    wanted = {offer: offers[offer] for offer in registry.wants(name)}
    if vocabulary is None and "vocabulary" in wanted and parameters(component)["vocabulary"].required:
        raise ConfigError(f"{where}.name", f"'{name}' reads token ids; the data has no vocabulary, so choose another")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keys.to_seed(key))
            module: nn.Module = component(**wanted, **given)
    except Exception as error:
        raise ConfigError(
            where,
            f"'{name}' cannot be built: {error}"
            f" (inputs of shape {list(inputs)}, {classes} classes and vocabulary {vocabulary} were given)",
        ) from error
    key_dropout(module)
    return module.to(dtype).train()


def stackable(module: nn.Module) -> str | None:
    """None, or why a cohort's copies of the module cannot be run as one under vmap."""
    for name, part in module.named_modules():
        kind = f"'{name}' is a {type(part).__name__}" if name else f"the model is a {type(part).__name__}"
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            return f"{kind}: its batch statistics would mix in the samples that pad a client's batch"
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
            return f"{kind} with running statistics, which would mix in the samples that pad a client's batch"
        if isinstance(part, nn.RNNBase):
            return f"{kind}, which vmap cannot batch; a scan over cells can be stacked (see char_lstm)"
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return f"{kind}, which draws from torch's generator; KeyedDropout can be stacked"
        if isinstance(part, nn.MultiheadAttention) and part.dropout > 0:
            return f"{kind} with dropout inside, which draws from torch's generator"
    return None
