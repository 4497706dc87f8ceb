"""A client's memory where the client lives: as it was after each of the few answers that it may have to start from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from fedopt.types import FedoptError, Named, WireError

NONE = 0
"""The version with the first values."""


class Versions:
    """What a client kept after an exchange, by the number of that exchange.

    An answer may be rejected, and a server that died goes on from an older checkpoint; so the server says at which
    version an exchange starts, and which one its checkpoint has. These two and the newest are kept.

    first: values of version `NONE`.
    folder: one file per version, whole or not there at all; None keeps them in memory alone.
    """

    def __init__(self, first: Named, folder: Path | None = None) -> None:
        self.first = first
        self._folder = folder
        self._known: dict[int, Named] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def at(self, version: int) -> Named:
        """The memory of a version. Raises WireError for one that is not here."""
        if version == NONE:
            return self.first
        found = self._known.get(version)
        if found is None:
            found = self._read(version)
            self._known[version] = found
        return found

    def put(self, version: int, memory: Named) -> None:
        """Keep one more. Raises FedoptError where the disk does not take it."""
        if self._folder is not None:
            path = self._path(version)
            draft = path.with_suffix(".draft")
            try:
                # safetensors refuses tensors that share storage, as two keys with one value do
                content = save({name: value.contiguous().clone() for name, value in memory.items()})
                with draft.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                raise FedoptError(
                    f"the client's memory cannot be written to {path} ({error}); free some space"
                ) from error
        self._known[version] = memory

    def trim(self, keep: set[int]) -> None:
        """Let go of all others."""
        for version in self._known.keys() - keep:
            del self._known[version]
        if self._folder is not None:
            names = {self._path(version).name for version in keep}
            for path in self._folder.iterdir():
                if path.name not in names:
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _path(self, version: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{version:016x}.safetensors"

    def _read(self, version: int) -> Named:
        lost = f"the memory after exchange {version:016x} is needed, and this client does not have it"
        if self._folder is None:
            raise WireError(lost)
        try:
            found: Named = load(self._path(version).read_bytes())
        except (OSError, SafetensorError) as error:
            raise WireError(f"{lost} ({error})") from None
        wrong = found.keys() ^ self.first.keys()
        if wrong or any(found[n].shape != v.shape or found[n].dtype != v.dtype for n, v in self.first.items()):
            raise WireError(f"{lost}: what lies in its place is of another experiment")
        return found
