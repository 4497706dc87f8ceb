"""Data sets of the Hugging Face hub, or saved in its form on disk."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data._extras import optional
from fedopt.data._labels import class_indices, classes_of
from fedopt.data._paths import data_path, wrong_file
from fedopt.data._values import Dataset, Split
from fedopt.data._words import encode, word_numbers
from fedopt.registry import ConfigError, declare, nearest


@declare(reference="Lhoest et al. 2021, Datasets: a community library for natural language processing", extra="hf")
def huggingface(
    *,
    features: str,
    label: str = "label",
    path: str | None = None,
    hub: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    split: str = "train",
    test_split: str | None = None,
    group: str | None = None,
    vocabulary_size: Annotated[int, pydantic.Field(ge=3)] = 10_000,
    length: Annotated[int, pydantic.Field(ge=1)] = 32,
) -> Dataset:
    """One column of features and one of labels: x `[S, C, H, W]`, `[S, ...]` or `[S, length]`, y `[S]`.

    features: column with images (float32 in [0, 1]), with numbers or lists of numbers (float32), or with sentences
        (word numbers).
    label: column with the label; float numbers make it a regression.
    path: below FEDOPT_DATA, a folder that `save_to_disk` wrote or one with data files that `load_dataset` reads.
    hub: name on the hub, in place of `path`. This alone may download: the `datasets` package does, into its own cache,
        unless HF_HUB_OFFLINE=1 is set.
    subset, revision: of the data set on the hub.
    split, test_split: names of the training and the test split.
    group: column that names the natural owner of a sample, as in the data sets of `flwr-datasets`.
    vocabulary_size, length: for sentences; see the source `text`.

    Raises ConfigError for a missing package, path, split or column, and for a column that is none of these kinds.
    """
    if (path is None) == (hub is None):
        raise ConfigError("data.path", "one of data.path (files on disk) and data.hub (a name on the hub) was needed")
    datasets = optional("datasets", "hf")
    train = _split(datasets, path, hub, subset, revision, split, "data.split")
    test = None
    if test_split is not None:
        test = _split(datasets, path, hub, subset, revision, test_split, "data.test_split")
    source = path or hub or ""
    parts = [train] if test is None else [train, test]
    for name, where in ((features, "data.features"), (label, "data.label"), (group, "data.group")):
        if name is not None and name not in train.column_names:
            known = train.column_names
            raise ConfigError(
                where, f"{source} has no column '{name}'.{nearest(name, known)} Columns: {', '.join(known)}"
            )
    xs, vocabulary = _features([list(part[features]) for part in parts], features, source, vocabulary_size, length)
    ys, names, task = _labels([list(part[label]) for part in parts], train.features[label], source)
    groups: Tensor | None = None
    owners: tuple[str, ...] = ()
    if group is not None:
        of = [str(owner) for owner in train[group]]
        owners = classes_of(of)
        groups = class_indices(of, owners, source, "data.group")
    own_test = Split(xs[1], ys[1]) if test is not None else None
    return Dataset(xs[0], ys[0], names, groups, owners, own_test, task, vocabulary)


def _split(
    datasets: Any, path: str | None, hub: str | None, subset: str | None, revision: str | None, split: str, where: str
) -> Any:
    key = "data.hub" if path is None else "data.path"
    folder = None if path is None else data_path(path, key)
    try:
        if folder is None:
            held = datasets.load_dataset(hub, subset, revision=revision)
        elif (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            held = datasets.load_from_disk(str(folder))
        else:
            held = datasets.load_dataset(str(folder), subset)
    except Exception as error:  # the package raises errors of its own and of its file readers
        expected = "a data set that the package 'datasets' reads"
        raise wrong_file(folder or hub or "", key, expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(held, dict):  # a single split was saved
        held = {"train": held}
    if split not in held:
        raise ConfigError(where, f"no split '{split}'.{nearest(split, held)} Splits: {', '.join(held)}")
    return held[split]


def _features(
    parts: list[list[Any]], column: str, source: str, vocabulary_size: int, length: int
) -> tuple[list[Tensor], int | None]:
    first = parts[0][0]
    if isinstance(first, str):
        numbers = word_numbers(parts[0], vocabulary_size)
        return [encode(part, numbers, length) for part in parts], len(numbers) + 2
    try:
        if hasattr(first, "getbands"):  # an image of Pillow
            mode = first.mode if first.mode in ("L", "RGB") else "RGB"
            stacks = [np.stack([np.asarray(image.convert(mode)) for image in part]) for part in parts]
            images = [torch.from_numpy(s).to(torch.float32).div_(255.0) for s in stacks]
            return [x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous() for x in images], None
        return [torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in parts], None
    except (TypeError, ValueError) as error:
        expected = f"images, numbers or sentences of one shape in column '{column}'"
        raise wrong_file(source, "data.features", expected, f"{type(first).__name__} ({error})") from error


def _labels(parts: list[list[Any]], feature: Any, source: str) -> tuple[list[Tensor], tuple[str, ...], str]:
    first = parts[0][0]
    if isinstance(first, float):
        return [torch.tensor(part, dtype=torch.float32) for part in parts], (), "regression"
    if not isinstance(first, int | str):
        raise wrong_file(source, "data.label", "a column of classes or numbers", type(first).__name__)
    published = tuple(getattr(feature, "names", None) or ())
    if published:
        for part in parts:
            if not all(isinstance(label, int) and 0 <= label < len(published) for label in part):
                raise wrong_file(source, "data.label", f"labels 0 to {len(published) - 1}", "others (-1 is no label)")
        return [torch.tensor(part, dtype=torch.int64) for part in parts], published, "classification"
    names = classes_of([str(label) for label in parts[0]])
    return (
        [class_indices([str(v) for v in part], names, source, "data.label") for part in parts],
        names,
        "classification",
    )
