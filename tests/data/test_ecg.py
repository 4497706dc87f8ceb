"""Beats against a decoding of the WFDB files byte by byte."""

from __future__ import annotations

import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedopt.data.ecg import ecg
from fedopt.registry import ConfigError

Find = Callable[[str], Path]

AAMI = {1: "N", 2: "N", 3: "N", 34: "N", 11: "N", 8: "S", 4: "S", 7: "S", 9: "S", 5: "V", 10: "V", 6: "F", 12: "Q"}
AAMI |= {38: "Q", 13: "Q"}
"""MIT annotation code -> AAMI class, for the beats that occur in MIT-BIH (de Chazal et al. 2004, table 1)."""


@pytest.fixture(autouse=True)
def package() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pytest.importorskip("wfdb", reason="needs the extra 'ecg'")


def annotations(path: Path) -> list[tuple[int, int]]:
    """(sample, code) of every annotation of the MIT format."""
    raw = path.read_bytes()
    at, time, found = 0, 0, []
    while at < len(raw):
        (word,) = struct.unpack_from("<H", raw, at)
        at += 2
        code, step = word >> 10, word & 1023
        if code == 0 and step == 0:
            break
        if code == 59:
            high, low = struct.unpack_from("<HH", raw, at)
            time += high << 16 | low
            at += 4
        elif code == 63:
            at += step + step % 2
        elif code not in (60, 61, 62):
            time += step
            found.append((time, code))
    return found


def millivolts(raw: bytes, sample: int, lead: int) -> float:
    """One sample of a two-lead record in format 212, 200 units per mV around 1024."""
    low, mixed, high = raw[3 * sample : 3 * sample + 3]
    value = low | (mixed & 15) << 8 if lead == 0 else high | (mixed & 240) << 4
    return ((value - 4096 if value >= 2048 else value) - 1024) / 200


@pytest.mark.parametrize(("record", "limb_lead"), [("101", 0), ("114", 1)])
def test_beats_are_the_windows_around_the_annotations(fedopt_data: Find, record: str, limb_lead: int) -> None:
    folder = fedopt_data("mitdb")
    got = ecg(folder=str(folder), records=(record,), normalise=False)
    raw = (folder / f"{record}.dat").read_bytes()
    beats = [(at, AAMI[c]) for at, c in annotations(folder / f"{record}.atr") if c in AAMI]
    beats = [(at, c) for at, c in beats if at - 90 >= 0 and at + 110 <= 650_000]
    assert got.x.shape == (len(beats), 2, 200) and got.x.dtype == torch.float32
    assert [got.class_names[c] for c in got.y.tolist()] == [c for _, c in beats]
    for k in (0, 1, len(beats) // 2, len(beats) - 1):
        for lead in (0, 1):
            stored = limb_lead if lead == 0 else 1 - limb_lead
            want = [millivolts(raw, beats[k][0] - 90 + t, stored) for t in range(200)]
            assert got.x[k, lead].tolist() == pytest.approx(want, abs=1e-5)
    alone = ecg(folder=str(folder), records=(record,), normalise=False, leads=1)
    assert torch.equal(alone.x[:, 0], got.x[:, 1])


def test_the_whole_first_half_of_the_database(fedopt_data: Find) -> None:
    folder = fedopt_data("mitdb")
    got = ecg(folder=str(folder), held_out=("101", "230"), decimate=4)
    assert got.groups is not None and got.test is not None and len(got.group_names) == 20
    assert "101" not in got.group_names
    tally = dict.fromkeys("NSVFQ", 0)
    for path in sorted(folder.glob("*.atr")):
        for at, code in annotations(path):
            if code in AAMI and at >= 90 and at + 110 <= 650_000:
                tally[AAMI[code]] += 1
    counts = torch.bincount(got.y, minlength=5) + torch.bincount(got.test.y, minlength=5)
    assert counts.tolist() == list(tally.values())
    # the published table counts all beats of DS1, with the few at the ends of a recording
    published = {"N": 45_866, "S": 944, "V": 3_788, "F": 415, "Q": 8}
    assert all(0 <= published[c] - tally[c] <= 15 for c in "NSVFQ")
    assert got.x.shape[1:] == (2, 50)
    assert got.x.mean(-1).abs().max() < 1e-5 and (got.x.std(-1, correction=0) - 1).abs().max() < 1e-3


PEAKS = [5, 100, 300, 350, 500, 700, 900, 990]
SYMBOLS = ["N", "N", "V", "+", "A", "!", "F", "N"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wfdb

        for name, leads in (("a", ["MLII", "V1"]), ("b", ["V5", "MLII"]), ("c", ["MLII", "V1"])):
            signal = np.round(rng.normal(size=(1000, 2)) * 100).astype(np.int64)
            wfdb.wrsamp(
                name,
                fs=360,
                units=["mV"] * 2,
                sig_name=leads,
                d_signal=signal,
                fmt=["16"] * 2,
                adc_gain=[100.0] * 2,
                baseline=[0] * 2,
                write_dir=str(tmp_path),
            )
            wfdb.wrann(name, "atr", np.array(PEAKS), SYMBOLS, write_dir=str(tmp_path))
    return tmp_path


def test_windows_leads_decimation_and_normalisation_against_loops(folder: Path) -> None:
    got = ecg(folder=str(folder), records=("a", "b"), before=20, after=28, decimate=4, merge=(("a", "b"),))
    assert got.group_names == ("a+b",) and got.groups is not None and got.groups.tolist() == [0] * 8
    assert [got.class_names[c] for c in got.y.tolist()] == ["N", "V", "S", "F"] * 2
    kept = [100, 300, 500, 900]
    for r, (name, order) in enumerate((("a", (0, 1)), ("b", (1, 0)))):
        raw = np.frombuffer((folder / f"{name}.dat").read_bytes(), dtype="<i2").reshape(1000, 2)
        for k, peak in enumerate(kept):
            for lead in (0, 1):
                short = []
                for block in range(12):
                    total = 0.0
                    for i in range(4):
                        total += raw[peak - 20 + 4 * block + i, order[lead]] / 100
                    short.append(total / 4)
                mean = sum(short) / 12
                deviation = (sum((v - mean) ** 2 for v in short) / 12) ** 0.5
                want = [(v - mean) / deviation for v in short]
                assert got.x[4 * r + k, lead].tolist() == pytest.approx(want, abs=1e-4)


def test_held_out_records_are_the_test_set(folder: Path) -> None:
    got = ecg(folder=str(folder), held_out=("b",), leads=0)
    assert got.group_names == ("a", "c") and got.test is not None and got.groups is not None
    alone = ecg(folder=str(folder), records=("b",), leads=0)
    assert torch.equal(got.test.x, alone.x) and torch.equal(got.test.y, alone.y)
    assert torch.bincount(got.groups).tolist() == [3, 3]  # the beat at 900 ends after the recording


def test_configs_that_make_no_sense(folder: Path) -> None:
    for options, message in (
        ({"records": ("a", "d")}, r"data\.records: no record 'd' in .* Known: a, b, c"),
        ({"held_out": ("x1",)}, r"data\.held_out: no record 'x1'"),
        ({"merge": (("a", "z"),)}, r"data\.merge: no record 'z'"),
        ({"merge": (("a", "b"),), "held_out": ("b",)}, r"data\.held_out: a\+b is one person, trained on and held out"),
        ({"held_out": ("a", "b", "c")}, r"data\.held_out: all records are held out"),
        ({"decimate": 7}, r"data\.decimate: 7 does not divide data\.before \+ data\.after = 200"),
        ({"before": 2000}, r"expected beats with 2000 samples before and 110 after the peak, found none"),
    ):
        with pytest.raises(ConfigError, match=message):
            ecg(folder=str(folder), **options)  # type: ignore[arg-type]


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def broken(change: Callable[[Path], object]) -> str:
        copy = tmp_path_factory.mktemp("records")
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        change(copy)
        with pytest.raises(ConfigError) as error:
            ecg(folder=str(copy))
        assert error.value.where == "data.folder" and str(copy) in str(error.value)
        return str(error.value)

    assert "expected b.dat, which record b needs, found no such file" in broken(lambda c: (c / "b.dat").unlink())
    assert "expected b.atr, which record b needs, found no such file" in broken(lambda c: (c / "b.atr").unlink())
    cut = broken(lambda c: (c / "b.dat").write_bytes((c / "b.dat").read_bytes()[:1500]))
    assert "b.dat cannot be used: expected 1000 samples of 2 leads in b.dat, as b.hea says" in cut
    assert "b.hea cannot be used: expected a WFDB header" in broken(lambda c: (c / "b.hea").write_text("<html>\n"))
    assert "b.hea cannot be used" in broken(lambda c: (c / "b.hea").write_text(""))
    assert "b.atr cannot be used" in broken(lambda c: (c / "b.atr").write_bytes(b""))
    assert "expected WFDB records (.hea files), found none" in broken(lambda c: [p.unlink() for p in c.glob("*.hea")])


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(ConfigError, match=r"data\.name: .*'wfdb'.*pip install 'fedopt\[ecg\]'"):
        ecg(folder=str(folder))
