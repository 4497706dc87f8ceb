"""Sentences -> word numbers: 0 is padding, 1 an unknown word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1


def word_numbers(sentences: Iterable[str], size: int) -> dict[str, int]:
    """Numbers from 2 on for the `size - 2` most frequent words; equally frequent ones in alphabetical order."""
    tally: Counter[str] = Counter()
    for sentence in sentences:
        tally.update(sentence.split())
    ranked = sorted(tally, key=lambda word: (-tally[word], word))
    return {word: number for number, word in enumerate(ranked[: max(size - 2, 0)], start=2)}


def encode(sentences: Sequence[str], numbers: Mapping[str, int], length: int) -> Tensor:
    """The first `length` words of each sentence, int64 `[S, length]`, padded with 0 at the end."""
    rows = []
    for sentence in sentences:
        row = [numbers.get(word, UNKNOWN) for word in sentence.split()[:length]]
        rows.append(row + [PADDING] * (length - len(row)))
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
