"""Next-character prediction on plays, one owner per speaking role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from fedopt.data._paths import data_path, wrong_file
from fedopt.data._values import Dataset, Split
from fedopt.registry import ConfigError, declare

Positive = Annotated[int, pydantic.Field(ge=1)]


@declare(reference="McMahan et al. 2017, section 3 (Shakespeare); Caldas et al. 2018, LEAF")
def plays(
    *,
    file: str = "shakespeare/input.txt",
    length: Positive = 80,
    stride: Positive | None = None,
    target: Literal["sequence", "last"] = "sequence",
    min_samples: Positive = 1,
    held_out: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.2,
) -> Dataset:
    """Windows of a role's text and the characters that follow: x `[S, length]` character numbers, int64.

    The sample that starts at s is x = t[s : s + length] and y = t[s + 1 : s + length + 1] (`[S, length]`), where t is
    all that the role says, speeches joined by line ends.

    file: text below FEDOPT_DATA; speeches separated by blank lines, first line `Name:`.
    length: characters per window.
    stride: characters from one window's start to the next; None is `length`, so that windows do not overlap.
    target: `last` keeps the character after the window alone, y `[S]`.
    min_samples: roles with fewer training windows are left out.
    held_out: the last share of every role's text is not trained on; its windows are the test set.

    Raises ConfigError for a missing file, one of another form, and when no role is left.

    *Differences from the paper:* a name is one role in the whole file, because the file does not say where a play ends;
    LEAF starts a window at every character (`stride = 1`) and predicts one character (`target = "last"`).
    """
    path = data_path(file, "data.file")
    roles = _speeches(path)
    characters = sorted(set("".join(roles.values())))
    number = {character: i for i, character in enumerate(characters)}
    train: list[tuple[Tensor, Tensor]] = []
    test: list[tuple[Tensor, Tensor]] = []
    names: list[str] = []
    for name, speech in roles.items():
        tokens = np.array([number[character] for character in speech], dtype=np.int64)
        cut = len(tokens) - int(held_out * len(tokens))
        windows = _windows(tokens[:cut], length, stride or length, target)
        if len(windows[0]) >= min_samples:
            names.append(name)
            train.append(windows)
            test.append(_windows(tokens[cut:], length, stride or length, target))
    if not names:
        longest = max(map(len, roles.values()))
        raise ConfigError(
            "data.length",
            f"no role of {path} has {min_samples} windows of {length} characters (the longest role has {longest}"
            " characters in all); take a smaller data.length, data.stride, data.held_out or data.min_samples",
        )
    x, y = (torch.cat(parts) for parts in zip(*train, strict=True))
    x_test, y_test = (torch.cat(parts) for parts in zip(*test, strict=True))
    groups = torch.repeat_interleave(torch.tensor([len(windows[0]) for windows in train]))
    own_test = Split(x_test, y_test) if len(x_test) else None
    return Dataset(x, y, tuple(characters), groups, tuple(names), own_test, vocabulary=len(characters))


def _speeches(path: Path) -> dict[str, str]:
    """All that each role says, roles in the order of their first speech."""
    try:
        whole = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise wrong_file(path, "data.file", "UTF-8 text", f"other bytes at position {error.start}") from error
    spoken: dict[str, list[str]] = {}
    for turn in re.split(r"\n\s*\n", whole.strip()):
        name, _, speech = turn.partition("\n")
        if not name.endswith(":"):
            raise wrong_file(path, "data.file", "speeches whose first line is 'Name:'", repr(name[:60]))
        if speech:
            spoken.setdefault(name[:-1], []).append(speech)
    if not spoken:
        raise wrong_file(path, "data.file", "speeches below the lines 'Name:'", "none")
    return {name: "\n".join(speeches) for name, speeches in spoken.items()}


def _windows(tokens: np.ndarray, length: int, stride: int, target: str) -> tuple[Tensor, Tensor]:
    if len(tokens) <= length:
        rows = np.empty((0, length + 1), dtype=np.int64)
    else:
        rows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride].copy()
    pairs = torch.from_numpy(rows)
    return pairs[:, :-1].contiguous(), pairs[:, -1].clone() if target == "last" else pairs[:, 1:].contiguous()
