"""Heart beats cut out of annotated ECG recordings, one owner per patient."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
import torch

from fedopt.data._extras import optional
from fedopt.data._paths import data_path, wrong_file
from fedopt.data._values import Dataset, Split
from fedopt.registry import ConfigError, declare, nearest

CLASSES = ("N", "S", "V", "F", "Q")
SYMBOLS = {"N": "NLRBejn", "S": "AaJS", "V": "VrE", "F": "F", "Q": "/fQ?"}
"""AAMI class -> beat symbols of the MIT-BIH annotations; other symbols (rhythm changes, flutter waves) are no beats."""

Positive = Annotated[int, pydantic.Field(ge=1)]


class _Beats(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    rate: float


@declare(reference="ANSI/AAMI EC57:1998; de Chazal, O'Dwyer, Reilly 2004; Moody & Mark 2001 (MIT-BIH)", extra="ecg")
def ecg(
    *,
    folder: str = "mitdb",
    records: tuple[str, ...] | None = None,
    held_out: tuple[str, ...] = (),
    merge: tuple[tuple[str, ...], ...] = (),
    leads: Literal["both", 0, 1] = "both",
    before: Positive = 90,
    after: Positive = 110,
    decimate: Positive = 1,
    normalise: bool = True,
    annotator: str = "atr",
    positive: Literal["N", "S", "V", "F", "Q"] | None = None,
) -> Dataset:
    """Beats around the annotated R peaks: x `[S, leads, (before + after) / decimate]` float32, y in N, S, V, F, Q.

    folder: WFDB records (.hea, .dat, .atr) below FEDOPT_DATA.
    records: names of records; None is every .hea file of the folder. Each is one patient, and so one group.
    held_out: records that are not trained on; their beats are the test set (patients never seen).
    merge: records of the same person, as in `[["201", "202"]]` for the whole MIT-BIH database.
    leads: `both`, or one of them. MLII counts as lead 0 where there is one (record 114 stores it second).
    before, after: samples before the peak, and from the peak on.
    decimate: replace this many neighbouring samples by their mean, for speed.
    normalise: give every beat and lead mean 0 and deviation 1; otherwise millivolts.
    annotator: suffix of the annotation files.
    positive: a class that is told from all the others; y is then 1 for it and 0 for them.

    Beats whose window leaves the recording or holds an invalid sample are left out.

    Raises ConfigError for a missing package wfdb, a missing or truncated file, unknown records, and a person who would
    be trained on and held out.
    """
    root = data_path(folder, "data.folder")
    present = sorted(path.stem for path in root.glob("*.hea"))
    names = present if records is None else list(dict.fromkeys(records))
    if not names:
        raise wrong_file(root, "data.folder", "WFDB records (.hea files)", "none")
    for key, given, known in (
        ("records", names, present),
        ("held_out", held_out, names),
        ("merge", [name for same in merge for name in same], names),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"data.{key}", f"no record '{name}' in {root}.{nearest(name, known)} Known: {', '.join(known)}"
                )
    if (before + after) % decimate:
        raise ConfigError("data.decimate", f"{decimate} does not divide data.before + data.after = {before + after}")
    person = {name: "+".join(same) for same in merge for name in same}
    trained = [name for name in names if name not in held_out]
    both = {person.get(name, name) for name in trained} & {person.get(name, name) for name in held_out}
    if both:
        raise ConfigError("data.held_out", f"{', '.join(sorted(both))} is one person, trained on and held out")
    if not trained:
        raise ConfigError("data.held_out", "all records are held out, and none is left to train on")

    with warnings.catch_warnings():
        # wfdb 4.3 calls pandas 3 in an outdated way, which is not the caller's concern
        warnings.simplefilter("ignore", DeprecationWarning)
        wfdb = optional("wfdb", "ecg")
        read = {name: _read(wfdb, root, name, annotator, leads, before, after) for name in names}
    rates = {beats.rate for beats in read.values()}
    if len(rates) > 1:
        raise ConfigError("data.records", f"one sampling rate was needed, the records have {sorted(rates)} Hz")

    def split(chosen: list[str]) -> Split:
        x = np.concatenate([read[name].x for name in chosen])
        x = x.reshape(*x.shape[:2], -1, decimate).mean(-1, dtype=np.float32)
        if normalise:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.maximum(x.std(-1, keepdims=True), 1e-6)  # a lead may be flat
        return Split(torch.from_numpy(x), torch.from_numpy(np.concatenate([read[name].y for name in chosen])))

    people = list(dict.fromkeys(person.get(name, name) for name in trained))
    owner = torch.tensor([people.index(person.get(name, name)) for name in trained])
    groups = torch.repeat_interleave(owner, torch.tensor([len(read[name].y) for name in trained]))
    test = split([name for name in names if name in held_out]) if held_out else None
    data = Dataset(*split(trained), CLASSES, groups, tuple(people), test)
    return data if positive is None else _binary(data, positive)


def _binary(data: Dataset, positive: str) -> Dataset:
    """One class against the others."""

    def told(y: torch.Tensor) -> torch.Tensor:
        return (y == CLASSES.index(positive)).to(y.dtype)

    test = None if data.test is None else data.test._replace(y=told(data.test.y))
    return data._replace(y=told(data.y), class_names=(f"not {positive}", positive), test=test)


def _read(wfdb: Any, root: Path, name: str, annotator: str, leads: str | int, before: int, after: int) -> _Beats:
    record = str(root / name)
    header_file, annotations = root / f"{name}.hea", root / f"{name}.{annotator}"
    try:
        header = wfdb.rdheader(record)
        signal_files = [root / file for file in dict.fromkeys(header.file_name)]
    except Exception as error:  # the parser fails in many ways on a file that is no header
        raise wrong_file(header_file, "data.folder", "a WFDB header", f"{type(error).__name__}: {error}") from error
    for path in (*signal_files, annotations):
        if not path.exists():
            raise wrong_file(root, "data.folder", f"{path.name}, which record {name} needs", "no such file")
    listing = ", ".join(path.name for path in signal_files)
    expected = f"{header.sig_len} samples of {header.n_sig} leads in {listing}, as {name}.hea says"
    try:
        signal = wfdb.rdrecord(record, return_res=32).p_signal
    except Exception as error:
        raise wrong_file(signal_files[0], "data.folder", expected, f"{type(error).__name__}: {error}") from error
    if len(signal) != header.sig_len:
        raise wrong_file(signal_files[0], "data.folder", expected, f"{len(signal)} samples")
    try:
        marks = wfdb.rdann(record, annotator)
    except Exception as error:
        expected = "a WFDB annotation file"
        raise wrong_file(annotations, "data.folder", expected, f"{type(error).__name__}: {error}") from error

    # sorted is stable: the limb lead first, the others in the order of the header
    order = sorted(range(header.n_sig), key=lambda i: header.sig_name[i] != "MLII")
    order = order[:2] if leads == "both" else order[int(leads) : int(leads) + 1]
    if len(order) < (2 if leads == "both" else 1):
        raise ConfigError("data.leads", f"{leads!r} was given, and record {name} has {header.n_sig} lead")
    number = {symbol: CLASSES.index(aami) for aami, symbols in SYMBOLS.items() for symbol in symbols}
    at = np.asarray(marks.sample, dtype=np.int64)
    y = np.array([number.get(symbol, -1) for symbol in marks.symbol], dtype=np.int64)
    inside = (y >= 0) & (at >= before) & (at + after <= len(signal))
    if not inside.any():
        raise wrong_file(
            annotations, "data.folder", f"beats with {before} samples before and {after} after the peak", "none"
        )
    windows = np.lib.stride_tricks.sliding_window_view(signal[:, order], before + after, axis=0)
    x = windows[at[inside] - before].astype(np.float32)
    valid = np.isfinite(x).all((1, 2))
    if not valid.any():
        raise wrong_file(signal_files[0], "data.folder", "beats without invalid samples", "none")
    return _Beats(x[valid], y[inside][valid], float(header.fs))
