"""A client's memory on its own disk: kept as long as it may be asked for, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedopt.engine.versions import NONE, Versions
from fedopt.types import FedoptError, WireError

FIRST = {"control": torch.zeros(4, dtype=torch.float64), "rounds": torch.tensor(0)}


def memory(value: float) -> dict[str, torch.Tensor]:
    return {"control": torch.full((4,), value, dtype=torch.float64), "rounds": torch.tensor(int(value))}


def test_versions_come_back_after_the_process_ended(tmp_path: Path) -> None:
    versions = Versions(FIRST, tmp_path)
    assert versions.at(NONE) is FIRST
    versions.put(1, memory(1.0))
    versions.put((1 << 64) - 1, memory(2.0))
    for known in (versions, Versions(FIRST, tmp_path)):
        assert known.at((1 << 64) - 1)["control"].tolist() == [2.0] * 4
        assert int(known.at(1)["rounds"]) == 1
    versions.trim({NONE, (1 << 64) - 1})
    assert len(list(tmp_path.iterdir())) == 1
    for known in (versions, Versions(FIRST, tmp_path)):
        with pytest.raises(WireError, match="the memory after exchange 0000000000000001 is needed"):
            known.at(1)


def test_without_a_folder_nothing_is_left() -> None:
    versions = Versions(FIRST)
    versions.put(1, memory(1.0))
    assert versions.at(1)["control"].tolist() == [1.0] * 4
    versions.trim(set())
    with pytest.raises(WireError, match="does not have it"):
        versions.at(1)


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_what_is_damaged_or_of_another_experiment_is_not_taken(content: bytes | None, tmp_path: Path) -> None:
    Versions(FIRST if content is not None else {"other": torch.zeros(2)}, tmp_path).put(
        3, memory(1.0) if content is not None else {"other": torch.zeros(2)}
    )
    [path] = tmp_path.iterdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WireError, match="does not have it"):
        Versions(FIRST, tmp_path).at(3)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Versions(FIRST, tmp_path)
    versions.put(1, memory(1.0))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FedoptError, match=r"cannot be written.*No space left.*free some space"):
        versions.put(2, memory(2.0))
    assert [path.name for path in tmp_path.iterdir()] == [f"{1:016x}.safetensors"]
    assert Versions(FIRST, tmp_path).at(1)["control"].tolist() == [1.0] * 4
