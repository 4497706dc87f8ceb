"""From a data set to everybody's data: the server's splits, the clients' splits, and changes to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedopt.data._values import Dataset, Federation, Parts, Shards, Split
from fedopt.data.partitions import registry
from fedopt.keys import fold, permutation, words
from fedopt.registry import ConfigError, facts, validate
from fedopt.types import Clients, FedoptError
from fedopt.types import client_ids as increasing

CELLS = 1 << 20
"""Samples that are split off at a time."""


def federate(
    dataset: Dataset,
    *,
    clients: int | None,
    partition: str = "iid",
    partition_options: Mapping[str, Any] = {},
    test_share: float = 0.2,
    valid_share: float = 0.0,
    trial_samples: int = 0,
    trial: Dataset | None = None,
    key: Tensor,
) -> Federation:
    """Hold out the server's samples, spread the others over clients, and split off every client's own `valid` samples.

    clients: how many; None where the partition knows (`natural`).
    partition: name or import path, with its options.
    test_share: share of the samples held out as the server's `test`, class by class; without effect where the data set
        has its own test set.
    valid_share: share of each client's samples in his `valid` split, at least one if he has two; he always keeps one
        to train on. With 0 there is no such split.
    trial_samples: samples of the training part that go to the server's `trial` split, class by class.
    trial: another data set of the same kind that the `trial` split is drawn from instead; 0 samples take all of it.
    key: counter key; the same key gives the same federation.

    Samples of sequences and of regressions are held out without regard to their labels.

    Raises ConfigError for shares that leave nothing, a data set that contradicts itself and everything that the
    partition refuses.
    """
    _check(dataset, test_share, valid_share, trial_samples)
    classes = _classes(dataset)
    samples = len(dataset.y)
    server: dict[str, Split] = {}
    held = torch.zeros(samples, dtype=torch.bool)
    if dataset.test is not None:
        server["test"] = dataset.test
    elif test_share > 0:
        held[_stratified(classes, max(1, round(test_share * samples)), fold(key, "test"))] = True
        server["test"] = Split(dataset.x[held], dataset.y[held])
    train = torch.nonzero(~held).flatten()
    if trial is None and trial_samples >= len(train):
        raise ConfigError(
            "data.trial_samples", f"{trial_samples} was given, and the training part has {len(train)} samples; lower it"
        )
    if trial is not None:
        server["trial"] = _drawn(trial, dataset, trial_samples, fold(key, "trial"))
    elif trial_samples:
        chosen = _stratified(classes[train], trial_samples, fold(key, "trial"))
        server["trial"] = Split(dataset.x[train[chosen]], dataset.y[train[chosen]])
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[chosen] = False
        train = train[rest]

    component = registry.get(partition, "data.partition.name")
    options = validate(component, partition_options, "data.partition")
    groups = None if dataset.groups is None else dataset.groups[train]
    parts = component(dataset.y[train], groups, clients, fold(key, "partition"), **options)
    _check_parts(parts, len(train), clients, partition, shared=bool(facts(component).get("shared")))
    sizes = parts.sizes
    index = train[parts.index]
    del parts  # of many clients, the largest thing here
    names: tuple[str, ...] = ()
    if facts(component).get("by_groups") and dataset.groups is not None and dataset.group_names:
        first = index[sizes.cumsum(0) - sizes]
        names = tuple(dataset.group_names[group] for group in dataset.groups[first].tolist())
    splits = _client_splits(dataset, index, sizes, valid_share, fold(key, "valid"))
    return Federation(splits, server, dataset.class_names, names, dataset.task, dataset.vocabulary)


def _drawn(trial: Dataset, dataset: Dataset, samples: int, key: Tensor) -> Split:
    """So many samples of the trial source, class by class."""
    kinds = [(d.x.shape[1:], d.x.dtype, d.y.shape[1:], d.class_names, d.task) for d in (dataset, trial)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            "data.trial",
            f"samples of the same kind as the clients' are needed: {list(kinds[0][0])} {kinds[0][1]}, classes"
            f" {', '.join(kinds[0][3])}; it gives {list(kinds[1][0])} {kinds[1][1]}, classes {', '.join(kinds[1][3])}",
        )
    if samples in (0, len(trial.y)):
        return Split(trial.x, trial.y)
    if samples > len(trial.y):
        raise ConfigError("data.trial_samples", f"{samples} was given, and data.trial has {len(trial.y)} samples")
    chosen = _stratified(_classes(trial), samples, key)
    return Split(trial.x[chosen], trial.y[chosen])


def pool(federation: Federation) -> Federation:
    """All clients' data as one client's, for the centralised baseline; the server's splits stay."""
    splits = {}
    for name, held in federation.splits.items():
        splits[name] = held._replace(offsets=torch.tensor([0, held.index.numel()]))
    return federation._replace(splits=splits, client_names=("all clients",))


def relabel(shards: Shards, client_ids: Clients, labels_function: Callable[[Tensor, int], Tensor]) -> Shards:
    """The same samples with other labels for some clients: `labels_function(labels [k, ...], client) -> labels`.

    Features are shared with `shards`, which does not change.

    Raises FedoptError for an unknown client and for labels of another shape or dtype.
    """
    y = shards.y.clone()
    for client in increasing(client_ids).tolist():
        if not 0 <= client < shards.clients:
            raise FedoptError(f"clients 0 to {shards.clients - 1} can get other labels, client {client} was given")
        own = slice(int(shards.offsets[client]), int(shards.offsets[client + 1]))
        changed = labels_function(y[own], client)
        if changed.shape != y[own].shape or changed.dtype != y.dtype:
            raise FedoptError(
                f"{y.dtype} labels of shape {list(y[own].shape)} were needed for client {client}, the function of"
                f" labels returned {changed.dtype} of shape {list(changed.shape)}"
            )
        y[own] = changed
    return shards._replace(y=y)


def resample(
    shards: Shards, client_ids: Clients, change: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
) -> Shards:
    """Other samples and labels for some clients: `change(x [k, ...], y [k, ...], client) -> (x, y)` of the same shapes.

    What they change is stored beside the source's samples, which stay as they are for all others.

    Raises FedoptError for an unknown client and for samples or labels of another shape or dtype.
    """
    labels: dict[int, Tensor] = {}
    added, index, end = [], shards.index.clone(), shards.x.shape[0]
    for client in increasing(client_ids).tolist():
        if not 0 <= client < shards.clients:
            raise FedoptError(f"clients 0 to {shards.clients - 1} can get other samples, client {client} was given")
        own = slice(int(shards.offsets[client]), int(shards.offsets[client + 1]))
        x, y = shards.x[index[own]], shards.y[own]
        changed, labels[client] = change(x, y, client)
        if changed.shape != x.shape or changed.dtype != x.dtype:
            raise FedoptError(
                f"{x.dtype} samples of shape {list(x.shape)} were needed for client {client}, the function of samples"
                f" returned {changed.dtype} of shape {list(changed.shape)}"
            )
        added.append(changed)
        index[own] = torch.arange(end, end + changed.shape[0])
        end += changed.shape[0]
    shards = shards._replace(x=torch.cat([shards.x, *added]), index=index)
    return relabel(shards, list(labels), lambda y, client: labels[client])


def counts(federation: Federation, split: str = "train", clients: Tensor | None = None) -> Tensor:
    """Samples of each class at each client, int64 `[N, classes]`; `[N, 1]` where a sample is not of one class.

    clients: ids `[n]`, of which alone there is a row then.

    Raises FedoptError for a split that the clients do not have.
    """
    if split not in federation.splits:
        raise FedoptError(f"the clients have the splits {', '.join(federation.splits)}, '{split}' was asked for")
    held = federation.splits[split]
    clients = torch.arange(held.clients) if clients is None else clients
    sizes = held.held(clients)
    if federation.task != "classification" or held.y.dim() != 1:
        return sizes[:, None]
    rows, classes = len(clients), federation.classes
    row = torch.repeat_interleave(torch.arange(rows), sizes)
    # the k-th sample of a row stands at the k-th position of its client
    position = torch.arange(len(row)) + (held.offsets[clients] - (sizes.cumsum(0) - sizes))[row]
    return torch.bincount(row * classes + held.y[position], minlength=rows * classes).reshape(rows, classes)


def _check(dataset: Dataset, test_share: float, valid_share: float, trial_samples: int) -> None:
    for name, share in (("test_share", test_share), ("valid_share", valid_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"data.{name}", f"a share in [0, 1) was needed, {share} was given")
    if trial_samples < 0:
        raise ConfigError("data.trial_samples", f"0 or more was needed, {trial_samples} was given")
    samples = len(dataset.y)
    for name, tensor in (("features", dataset.x), ("groups", dataset.groups)):
        if tensor is not None and len(tensor) != samples:
            raise ConfigError("data.name", f"the source gave {samples} labels and {len(tensor)} {name}")
    if samples < 2:
        raise ConfigError("data.name", f"at least 2 samples were needed, the source gave {samples}")
    if dataset.task == "classification":
        for y in (dataset.y, *((dataset.test.y,) if dataset.test is not None else ())):
            if y.is_floating_point() or (
                y.numel() and not 0 <= int(y.min()) <= int(y.max()) < len(dataset.class_names)
            ):
                raise ConfigError(
                    "data.name",
                    f"class indices below {len(dataset.class_names)} were needed, the source gave {y.dtype} labels from"
                    f" {y.min().item()} to {y.max().item()}",
                )


def _classes(dataset: Dataset) -> Tensor:
    """The class of each sample, or one class for all."""
    if dataset.task == "classification" and dataset.y.dim() == 1:
        return dataset.y
    return torch.zeros(len(dataset.y), dtype=torch.int64)


def _stratified(classes: Tensor, count: int, key: Tensor) -> Tensor:
    """`count` samples, each class as near to its share as whole numbers can be (largest remainders), increasing."""
    if count >= len(classes):
        raise ConfigError("data.test_share", f"nothing is left to train on after {count} of {len(classes)} samples")
    totals = torch.bincount(classes)
    quota = totals * count // len(classes)
    remainder = totals * count % len(classes)
    quota[torch.argsort(remainder, descending=True, stable=True)[: count - int(quota.sum())]] += 1
    shuffled = permutation(key, len(classes))
    order = shuffled[torch.argsort(classes[shuffled], stable=True)]
    rank = torch.arange(len(classes)) - torch.repeat_interleave(totals.cumsum(0) - totals, totals)
    return order[rank < quota[classes[order]]].sort().values


def _check_parts(parts: Parts, samples: int, clients: int | None, partition: str, *, shared: bool) -> None:
    """What every partition promises; a user's own may break it."""
    where = "data.partition.name"
    if not isinstance(parts, Parts):
        raise ConfigError(
            where, f"'{partition}' has to give fedopt.data.Parts(index, sizes), {type(parts).__name__} was given"
        )
    index, sizes = parts
    if not len(sizes) or (clients is not None and len(sizes) != clients):
        raise ConfigError(where, f"'{partition}' gave {len(sizes)} clients, data.clients is {clients}")
    empty = torch.nonzero(sizes <= 0).flatten()
    if len(empty):
        listing = ", ".join(f"client {i}" for i in empty[:5].tolist()) + (" and more" if len(empty) > 5 else "")
        raise ConfigError(
            where, f"'{partition}' left {listing} without samples; lower data.clients or change its options"
        )
    if int(sizes.sum()) != len(index):
        raise ConfigError(where, f"'{partition}' gave {len(index)} samples and sizes that add up to {int(sizes.sum())}")
    if index.dtype != torch.int64 or int(index.min()) < 0 or int(index.max()) >= samples:
        raise ConfigError(where, f"'{partition}' has to give int64 indices below {samples}")
    if not shared and int(torch.bincount(index).max()) > 1:
        raise ConfigError(where, f"'{partition}' gave a sample to two clients")


def _ranks(sizes: Tensor, random: Tensor) -> Tensor:
    """The rank of each sample in a random order of its client's samples; `sizes [n]`, a word for each sample."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    # by random word, then stably by client
    shuffled = torch.argsort(random, stable=True)
    order = shuffled[torch.argsort(owner[shuffled], stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    return rank


def _client_splits(
    dataset: Dataset, index: Tensor, sizes: Tensor, valid_share: float, key: Tensor
) -> dict[str, Shards]:
    def shards(index: Tensor, sizes: Tensor) -> Shards:
        offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64)
        offsets[1:] = sizes.cumsum(0)
        return Shards(dataset.x, index, dataset.y[index], offsets)

    if valid_share == 0:
        return {"train": shards(index, sizes)}
    share = torch.round(valid_share * sizes.to(torch.float64)).to(torch.int64)
    valid = torch.minimum(share.clamp_min(1), sizes - 1)  # a client with one sample trains on it
    last = sizes.cumsum(0) - 1
    chosen = torch.empty(len(index), dtype=torch.bool)
    # some whole clients at a time, so that a large population needs little memory beside its result
    for some in torch.arange(len(sizes)).split(torch.unique_consecutive(last // CELLS, return_counts=True)[1].tolist()):
        held = slice(int(last[some[0]] - sizes[some[0]]) + 1, int(last[some[-1]]) + 1)
        chosen[held] = _ranks(sizes[some], words(key, held.start, held.stop)) < torch.repeat_interleave(
            valid[some], sizes[some]
        )
    return {"train": shards(index[~chosen], sizes - valid), "valid": shards(index[chosen], valid)}
