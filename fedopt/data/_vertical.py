"""From a data set to parties with columns of the same people, and a label owner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fedopt.data._alignment import Method, align
from fedopt.data._federate import _check, _classes, _stratified
from fedopt.data._values import Dataset, Federation, Shards, Split
from fedopt.data.vertical import registry
from fedopt.data.vertical._columns import cut_axis
from fedopt.keys import fold, sample
from fedopt.registry import ConfigError, parameters, validate

Normalise = Literal["none", "variance", "standard"]


def federate_vertically(
    dataset: Dataset,
    *,
    parties: int,
    partition: str = "even",
    partition_options: Mapping[str, Any] = {},
    test_share: float = 0.2,
    normalise: Normalise = "variance",
    missing: float = 0.0,
    alignment: Method = "given",
    key: Tensor,
) -> Federation:
    """Cut the samples by columns over parties; the server is the label owner and alone has labels.

    parties: how many hold columns.
    partition: name or import path of a vertical partition, with its options. It sees the training people.
    test_share: share of the people held out, class by class; without effect where the data set has its own test set.
    normalise: `variance`: every feature divided by its own deviation (that of a whole population) over the aligned
        training people, so that zeros stay zeros; `standard`: its mean subtracted before; `none`. A party does that
        alone. A feature that is constant in training stays as it is.
    missing: the share of the people that each party, and the label owner, lacks, drawn by key. Those whom everybody has
        are found by their ids and remain.
    alignment: how they are found, see `align`; `given` only with `missing = 0`.
    key: counter key; the same key gives the same federation.

    In the result, for m training people, n parties and blocks as wide as the widest party's:

        splits["train"]  x [n m, *block], index 0 ... n m - 1, offsets 0, m, ..., n m. The rows m i ... m (i+1)
                         are party i's own columns of the people in the common order, then columns of zeros up to the
                         width. y [n m, 0]: no party has a label
        server["train"]  x [m, 0] and the labels y [m] of the people in this order

    and so for `test`, without which there are no held-out people. Names of clients say how many numbers of each person
    a party has.

    Raises ConfigError for a data set without labels or that contradicts itself, features that are NaN or infinite, more
    parties than columns, a partition that gives a column twice or not at all, fewer than 2 people who remain, and
    everything that the partition refuses.
    """
    if dataset.y is None or not dataset.y.numel():
        raise ConfigError("data.name", "the label owner has no labels: the source gave none")
    _check(dataset, test_share, 0.0, 0)
    if normalise not in get_args(Normalise):
        raise ConfigError(
            "data.vertical.normalise", f"one of {', '.join(get_args(Normalise))} was needed, '{normalise}' was given"
        )
    if not 0 <= missing < 1:
        raise ConfigError("data.vertical.missing", f"a share in [0, 1) was needed, {missing} was given")
    if missing and alignment == "given":
        raise ConfigError(
            "data.vertical.alignment",
            f"'given' needs everybody's people in one order, and with data.vertical.missing = {missing} parties have"
            " different people; use 'psi' or 'hashed'",
        )
    if normalise != "none" and not dataset.x.is_floating_point():
        raise ConfigError("data.vertical.normalise", f"features of {dataset.x.dtype} have no deviation; use 'none'")
    component = registry.get(partition, "data.vertical.name")
    options = validate(component, partition_options, "data.vertical")
    declared = parameters(component).get("axis")
    axis = cut_axis(dataset.x, options.get("axis", -1 if declared is None else declared.default))

    people = _held_out(dataset, test_share, fold(key, "test"))
    broken = {name: _not_finite(split.x, axis) for name, split in people.items()}
    x, y = people["train"]
    if broken["train"].any():  # a partition may look at the features, and is needed to say whose they are
        x = x.nan_to_num(0.0, 0.0, 0.0)
    columns = component(x, y, parties, fold(key, "partition"), **options)
    _check_columns(columns, x.shape[axis], parties, partition)
    for name, split in people.items():
        _check_finite(split, broken[name], columns, name)

    splits, server = {}, {}
    for name, split in people.items():
        held = _remaining(len(split.y), parties, missing, alignment, fold(key, "missing", name), name)
        splits[name] = _shards(split.x, axis, columns, held[1:])
        server[name] = Split(torch.empty(len(held[0]), 0), split.y[held[0]])
    if normalise != "none":
        _normalise(splits, axis, [len(own) for own in columns], centred=normalise == "standard")
    rest = math.prod(dataset.x.shape[1:]) // dataset.x.shape[axis]
    names = tuple(f"party {i} ({len(own) * rest} features)" for i, own in enumerate(columns))
    return Federation(splits, server, dataset.class_names, names, dataset.task, dataset.vocabulary)


def _held_out(dataset: Dataset, test_share: float, key: Tensor) -> dict[str, Split]:
    """The training people and the held-out ones, if there are any."""
    train = Split(dataset.x, dataset.y)
    if dataset.test is not None:
        test = dataset.test
        if test.x.shape[1:] != train.x.shape[1:] or test.x.dtype != train.x.dtype or len(test.x) != len(test.y):
            raise ConfigError(
                "data.name",
                f"a test set of the training samples' kind, {list(train.x.shape[1:])} {train.x.dtype}, was needed; the"
                f" source gave samples {list(test.x.shape)} {test.x.dtype} and {len(test.y)} labels",
            )
        return {"train": train, "test": test}
    if not test_share:
        return {"train": train}
    samples = len(train.y)
    held = torch.zeros(samples, dtype=torch.bool)
    held[_stratified(_classes(dataset), max(1, round(test_share * samples)), key)] = True
    return {"train": Split(train.x[~held], train.y[~held]), "test": Split(train.x[held], train.y[held])}


def _not_finite(x: Tensor, axis: int) -> Tensor:
    """How many numbers of each column are NaN or infinite."""
    return torch.isfinite(x).logical_not().movedim(axis, 0).flatten(1).sum(1)


def _check_finite(split: Split, broken: Tensor, columns: Sequence[Tensor], name: str) -> None:
    for party, own in enumerate(columns):
        worst = own[broken[own] > 0]
        if len(worst):
            more = f", and {len(worst) - 1} more of its columns have some" if len(worst) > 1 else ""
            raise ConfigError(
                "data.name",
                f"finite features were needed; column {int(worst[0])}, which party {party} holds, has"
                f" {int(broken[worst[0]])} numbers that are NaN or infinite among {len(split.y)} {name} samples{more}",
            )
    if split.y.is_floating_point() and not split.y.isfinite().all():
        count = int(split.y.isfinite().logical_not().sum())
        raise ConfigError(
            "data.name", f"finite labels were needed; {count} of the label owner's {len(split.y)} {name} labels are not"
        )


def _check_columns(columns: Sequence[Tensor], width: int, parties: int, partition: str) -> None:
    """What every vertical partition promises; a user's own may break it."""
    where = "data.vertical.name"
    if len(columns) != parties:
        raise ConfigError(where, f"'{partition}' gave {len(columns)} parties, data.clients is {parties}")
    for party, own in enumerate(columns):
        if not isinstance(own, Tensor) or own.dtype != torch.int64 or own.dim() != 1 or not len(own):
            raise ConfigError(
                where, f"'{partition}' has to give int64 positions of columns, and for party {party} does not"
            )
        if int(own.min()) < 0 or int(own.max()) >= width:
            raise ConfigError(
                where,
                f"'{partition}' has to give columns 0 to {width - 1}, and gave {int(own.min())} to {int(own.max())} to"
                f" party {party}",
            )
    times = torch.bincount(torch.cat(list(columns)), minlength=width)
    if (times != 1).any():
        column = int(torch.nonzero(times != 1)[0])
        holders = [f"party {party}" for party, own in enumerate(columns) if (own == column).any()]
        given = f"{int(times[column])} times, to {' and '.join(holders)}" if holders else "to nobody"
        raise ConfigError(where, f"'{partition}' has to give every column once, and gave column {column} {given}")


def _remaining(samples: int, parties: int, missing: float, alignment: Method, key: Tensor, name: str) -> list[Tensor]:
    """The people whom everybody has, as the label owner and as each party knows them: `[m]` each, in one order."""
    lacking = round(missing * samples)
    present = []
    for who in range(parties + 1):
        there = torch.ones(samples, dtype=torch.bool)
        there[sample(fold(key, who), samples, lacking)] = False
        present.append(there)
    common = int(torch.stack(present).all(0).sum())
    if common < 2:
        raise ConfigError(
            "data.vertical.missing",
            f"2 or more {name} people whom everybody has were needed, {common} of {samples} remain when each of"
            f" {parties} parties and the label owner lacks {lacking}; lower data.vertical.missing or data.clients",
        )
    # as long as each other, so that their order as strings is that of the samples
    ids = [f"{person:0{len(str(samples))}}" for person in range(samples)]
    held = [torch.nonzero(there).flatten() for there in present]
    positions = align([[ids[person] for person in own.tolist()] for own in held], alignment)
    return [own[position] for own, position in zip(held, positions, strict=True)]


def _shards(x: Tensor, axis: int, columns: Sequence[Tensor], people: Sequence[Tensor]) -> Shards:
    """Each party's block, one after another."""
    m, n = len(people[0]), len(columns)
    shape = list(x.shape)
    shape[0], shape[axis] = n * m, max(len(own) for own in columns)
    # column by column where these are numbers: products with tall and narrow matrices are twice as fast
    blocks = x.new_zeros(shape) if len(shape) > 2 else x.new_zeros(shape[::-1]).T
    for party, own in enumerate(columns):
        block = blocks[party * m : (party + 1) * m].narrow(axis, 0, len(own))
        block.copy_(x.index_select(axis, own)[people[party]])
    return Shards(blocks, torch.arange(n * m), torch.empty(n * m, 0), torch.arange(n + 1) * m)


def _normalise(splits: dict[str, Shards], axis: int, widths: Sequence[int], *, centred: bool) -> None:
    """Divide what parties have, in place, by its deviation in training."""
    for party, width in enumerate(widths):
        own = {name: held.x[held.offsets[party] : held.offsets[party + 1]] for name, held in splits.items()}
        own = {name: block.narrow(axis, 0, width) for name, block in own.items()}
        deviation, mean = torch.std_mean(own["train"], 0, correction=0)
        # the deviation of a constant may be rounding, and that of tiny numbers nothing
        constant = (own["train"].amin(0) == own["train"].amax(0)) | (deviation == 0)
        deviation[constant], mean[constant] = 1.0, 0.0
        for block in own.values():
            if centred:
                block -= mean
            block /= deviation
