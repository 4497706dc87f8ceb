"""A Flower record as vectors of fedopt, read without trust in what a node sent, and a problem that holds them alone."""

from __future__ import annotations

import copy
import fnmatch
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from fedopt import models
from fedopt.data import Federation, Shards, Split
from fedopt.flat import FlatSpec
from fedopt.problem import LIKELIHOODS, LOSSES, Network, Problem
from fedopt.registry import ConfigError
from fedopt.types import (
    FedoptError,
    Named,
    WireError,
)

Arrays = dict[str, NDArray[Any]]


class Held(NamedTuple):
    """What a server holds itself, for rules that try updates out on samples of its own.

    The names of the module's parameters and buffers are those of the app's arrays, as they are with
    `ArrayRecord(module.state_dict())`.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    loss: Literal["cross_entropy", "squares", "logistic"] = "cross_entropy"


class Layout(NamedTuple):
    """How the arrays of a record lie in fedopt's vectors; arrays of no floats stay as they are."""

    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    """Shape and dtype of every array, in order."""
    params: FlatSpec
    buffers: FlatSpec

    def read(self, record: Any) -> Arrays:
        """The arrays of a record from outside. Raises WireError unless they are named and shaped as here."""
        if wrong := sorted(record.keys() ^ self.kinds.keys()):
            raise WireError(f"the arrays {', '.join(self.kinds)} are needed, and '{wrong[0]:.80}' is not in both")
        return {name: array_of(name, record[name], *kind) for name, kind in self.kinds.items()}

    def vectors(self, arrays: Arrays) -> Named:
        """`params [d]`, and `buffers [b]` where there are any."""
        specs = {"params": self.params, "buffers": self.buffers}
        return {
            part: spec.flatten({n: torch.from_numpy(arrays[n]).to(spec.dtype) for n in spec.names})
            for part, spec in specs.items()
            if part == "params" or spec.names
        }

    def arrays(self, vectors: Named, others: Arrays) -> Any:
        """An ArrayRecord of vectors and of the arrays that lie in none, each of the dtype that it had."""
        named = {**self.params.unflatten(vectors["params"])}
        if "buffers" in vectors:
            named |= self.buffers.unflatten(vectors["buffers"])
        found = {n: t.to(torch.from_numpy(np.empty(0, self.kinds[n][1])).dtype).numpy() for n, t in named.items()}
        return ArrayRecord({n: Array(np.asarray({**others, **found}[n], order="C")) for n in self.kinds})

    def others(self, arrays: Arrays) -> Arrays:
        """Those that lie in no vector."""
        taken = {*self.params.names, *self.buffers.names}
        return {name: value for name, value in arrays.items() if name not in taken}


def layout_of(record: Any, buffers: Sequence[str], held: Held | None = None) -> Layout:
    """Of the arrays of our own side. Raises FedoptError where they cannot be taken for vectors."""
    arrays: Arrays = {name: array.numpy() for name, array in record.items()}
    kinds = {name: (value.shape, value.dtype) for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise FedoptError(f"arrays of floats and of whole numbers are needed, '{name}' is of {value.dtype}")
    floats = {name: torch.from_numpy(value) for name, value in arrays.items() if value.dtype.kind == "f"}
    if held is not None:
        apart = {name for name, _ in held.module.named_buffers()}
        if wrong := sorted(floats.keys() - apart - {name for name, _ in held.module.named_parameters()}):
            raise FedoptError(f"trial: the app's array '{wrong[0]}' is none of the module's; give the app's own module")
    else:
        for pattern in buffers:
            if not fnmatch.filter(arrays, pattern):
                raise ConfigError("buffers", f"no array matches '{pattern}'; there are {', '.join(arrays)}")
        apart = {name for name in floats if any(fnmatch.fnmatchcase(name, pattern) for pattern in buffers)}
    params = {name: value for name, value in floats.items() if name not in apart}
    if not params:
        raise FedoptError(f"arrays of floats are needed, {', '.join(arrays) or 'none'} were given")
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in floats.values()) else torch.float32
    rest = {name: value for name, value in floats.items() if name in apart}
    return Layout(kinds, FlatSpec.of(params, dtype), FlatSpec.of(rest, dtype))


def array_of(name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array from outside. Raises WireError for one of another kind, before anything is made of it."""
    if array.stype != "numpy.ndarray":
        raise WireError(f"the array '{name}' is needed as NumPy writes it, '{array.stype:.80}' was given")
    body = io.BytesIO(array.data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, _, kind = readers[np.lib.format.read_magic(body)](body)
    except Exception as error:  # a header is a Python literal, and what is wrong with one comes as any error
        raise WireError(f"the array '{name}' has no header of NumPy's: {type(error).__name__}") from None
    if (found, kind) != (shape, dtype):
        raise WireError(f"the array '{name}' is needed as {list(shape)} of {dtype}, not as it was given")
    size = dtype.itemsize * math.prod(shape)
    if len(array.data) - body.tell() != size:
        raise WireError(f"{size} bytes are needed for the array '{name}', {len(array.data) - body.tell()} were given")
    value: NDArray[Any] = array.numpy()
    return value


def only(records: Mapping[str, Any], kind: str) -> tuple[str, Any]:
    """The one record of a kind, with its name. Raises WireError."""
    if len(records) != 1:
        raise WireError(f"one {kind} is needed, {len(records)} were given")
    return next(iter(records.items()))


def problem_of(layout: Layout, vectors: Named, clients: int, held: Held | None = None) -> Problem:
    """What a strategy's server half sees: vectors, how many clients there may be, and what the server holds itself."""
    none = torch.zeros(0, dtype=torch.int64)
    nobodys = Shards(torch.zeros(0), none, none, torch.zeros(clients + 1, dtype=torch.int64))
    if held is None:
        network = Network(layout.params, layout.buffers, {}, (), nn.Identity(), nn.Identity())
        return Problem(network, Federation({"train": nobodys}, {}, ()), LOSSES["cross_entropy"], vectors)
    module = copy.deepcopy(held.module).to(layout.params.dtype)
    models.key_dropout(module)
    network, _ = Network.of(module)
    network = network._replace(spec=layout.params, buffer_spec=layout.buffers)
    x = held.x.to(layout.params.dtype) if held.x.is_floating_point() else held.x
    saturation = 0.25 if held.loss in LIKELIHOODS else 0.0  # the default of data.trial_saturation
    data = Federation({"train": nobodys}, {"trial": Split(x, held.y)}, ())
    return Problem(network, data, LOSSES[held.loss], vectors, trial_saturation=saturation)


def component_of(value: str | Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """A name with its options, from a name or from a table as in a config."""
    if isinstance(value, str):
        return value, {}
    options = dict(value)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name", "the name of a component is needed")
    return name, options
