"""Sentences with a label, in the tab-separated form of the GLUE tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from fedopt.data._labels import class_indices, classes_of
from fedopt.data._paths import data_path, wrong_file
from fedopt.data._values import Dataset, Split
from fedopt.data._words import encode, word_numbers
from fedopt.registry import declare


@declare(reference="Wang et al. 2019, GLUE (file form); Socher et al. 2013 (SST-2)")
def text(
    *,
    file: str,
    test_file: str | None = None,
    sentence: str | None = None,
    label: str = "label",
    vocabulary_size: Annotated[int, pydantic.Field(ge=3)] = 10_000,
    length: Annotated[int, pydantic.Field(ge=1)] = 32,
    lower: bool = True,
) -> Dataset:
    """Sentences as word numbers: x `[S, length]` int64, 0 = padding, 1 = unknown word; y `[S]`.

    file, test_file: tab-separated files below FEDOPT_DATA whose first line names the columns; no quoting, as in GLUE.
        The second becomes the test set.
    sentence: name of the column with the sentence; None takes the only column beside the label.
    label: name of the column with the label. Classes are sorted (as numbers if all are numbers).
    vocabulary_size: numbers in use, with 0 and 1: the most frequent words of the training file get the others.
    length: words kept of a sentence, from its start.
    lower: write all words in lower case.

    Raises ConfigError for a missing file and for one without these columns, naming the line.
    """
    path = data_path(file, "data.file")
    sentences, labels = _read(path, sentence, label, lower, "data.file")
    numbers = word_numbers(sentences, vocabulary_size)
    names = classes_of(labels)
    test = None
    if test_file is not None:
        test_path = data_path(test_file, "data.test_file")
        test_sentences, test_labels = _read(test_path, sentence, label, lower, "data.test_file")
        y_test = class_indices(test_labels, names, test_path, "data.test_file")
        test = Split(encode(test_sentences, numbers, length), y_test)
    x, y = encode(sentences, numbers, length), class_indices(labels, names, path, "data.file")
    return Dataset(x, y, names, test=test, vocabulary=len(numbers) + 2)


def _read(path: Path, sentence: str | None, label: str, lower: bool, where: str) -> tuple[list[str], list[str]]:
    try:
        # not splitlines, which also breaks at characters that may stand within a sentence
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise wrong_file(path, where, "UTF-8 text", f"other bytes at position {error.start}") from error
    header = lines[0].rstrip("\r").split("\t")
    others = [name for name in header if name != label]
    wanted = sentence if sentence is not None else others[0] if len(others) == 1 else None
    if label not in header or wanted not in header:
        columns = f"'{label}' and " + (f"'{sentence}'" if sentence is not None else "one other")
        raise wrong_file(
            path,
            where,
            f"a tab-separated first line with the columns {columns} (data.label, data.sentence)",
            repr(lines[0][:80]),
        )
    at_sentence, at_label = header.index(wanted), header.index(label)
    sentences, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            expected = f"{len(header)} tab-separated columns in every line"
            raise wrong_file(path, where, expected, f"{len(cells)} in line {number}: {line[:60]!r}")
        sentences.append(cells[at_sentence].lower() if lower else cells[at_sentence])
        labels.append(cells[at_label].strip())
    if not sentences:
        raise wrong_file(path, where, "lines after the first one", "none")
    return sentences, labels
