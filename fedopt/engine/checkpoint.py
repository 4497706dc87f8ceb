"""Checkpoints: everything the next exchange depends on, written so that a crash leaves the last good one.

A checkpoint is a folder `<exchange>/` of `state.json` (structure and numbers), `state.safetensors` (tensors) and
`memory.safetensors` (the clients' memory). It is written under a temporary name, flushed to disk and renamed.

A large memory is stored in pieces instead, `memory/<sha256>.safetensors`: rows by client, of which a later piece
replaces those of an earlier one. A piece never changes. `state.json` names the pieces of its checkpoint, and so those
of the next need not be written again; a piece is deleted when no checkpoint names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedopt.types import FedoptError, Named, State

_TENSORS = ("state.safetensors", "memory.safetensors")
_PIECES = "memory"


class CheckpointError(FedoptError):
    """A checkpoint could not be written or read."""


class Pieces(NamedTuple):
    """A memory in pieces below a folder of checkpoints, by their names in the order in which they were written."""

    folder: Path
    names: tuple[str, ...]

    def read(self) -> Iterator[Named]:
        """The pieces, one at a time. Raises CheckpointError for one that is missing or damaged."""
        for name in self.names:
            path = _piece(self.folder, name)
            try:
                yield load(_verified(path, name))
            except (OSError, ValueError, SafetensorError) as error:
                raise CheckpointError(
                    f"{path}, which a checkpoint needs, cannot be read ({error}); remove that checkpoint to go on from"
                    " an older one"
                ) from error


def write_pieces(folder: Path, pieces: Iterable[Named]) -> list[str]:
    """Write pieces of a memory below a folder of checkpoints; their names. Raises CheckpointError, losing nothing."""
    names = []
    draft = folder / _PIECES / ".draft"
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        for piece in pieces:
            content = save(_contiguous(piece))
            names.append(hashlib.sha256(content).hexdigest())
            path = _piece(folder, names[-1])
            if not path.exists():
                _write(draft, content)
                draft.rename(path)
        _flush_folder(draft.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise CheckpointError(f"could not write the clients' memory to {draft.parent}: {error}") from error
    return names


class Checkpoint(NamedTuple):
    """What was stored: the number of exchanges done, the state, the clients' memory, and facts of the run."""

    exchanges: int
    state: State
    memory: Named | Pieces
    run: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write `checkpoint` into `folder`, then drop all but the newest `keep`. Raises CheckpointError, losing nothing."""
    target = folder / f"{checkpoint.exchanges:08d}"
    draft, aside = folder / f".{target.name}.draft", folder / f".{target.name}.old"
    tensors: Named = {}
    tree = _encode(checkpoint.state, tensors)
    memory = checkpoint.memory
    contents = (_contiguous(tensors), {} if isinstance(memory, Pieces) else _contiguous(memory))
    files = {name: save(content) for name, content in zip(_TENSORS, contents, strict=True)}
    document = {
        "exchanges": checkpoint.exchanges,
        "state": tree,
        "run": checkpoint.run,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    if isinstance(memory, Pieces):
        document["pieces"] = list(memory.names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # of a run that was killed in here
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir()
        for name, content in files.items():
            _write(draft / name, content)
        _write(draft / "state.json", json.dumps(document, sort_keys=True, indent=1).encode())
        _flush_folder(draft)
        if target.exists():
            target.rename(aside)
        draft.rename(target)
        _flush_folder(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if aside.exists() and not target.exists():
            aside.rename(target)
        last = newest(folder)
        kept = f"the checkpoint after exchange {int(last.name)} is untouched" if last else "there is none before it"
        raise CheckpointError(f"could not write the checkpoint {target}: {error}; {kept}") from error
    shutil.rmtree(aside, ignore_errors=True)
    for old in _all(folder)[:-keep]:
        with contextlib.suppress(OSError):  # renamed first, for half a folder is no checkpoint
            shutil.rmtree(old.rename(folder / f".{old.name}.old"), ignore_errors=True)
    with contextlib.suppress(OSError, ValueError):
        _drop_pieces(folder)
    return target


def newest(folder: Path, at_most: int | None = None) -> Path | None:
    """The last whole checkpoint (after at most so many exchanges), or None."""
    found = [p for p in _all(folder) if at_most is None or int(p.name) <= at_most]
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder. Values only: nothing in it is executed."""
    try:
        document = json.loads((path / "state.json").read_text())
        tensors, whole = (load(_verified(path / name, document["sha256"][name])) for name in _TENSORS)
        state = _decode(document["state"], tensors)
        memory = Pieces(path.parent, tuple(document["pieces"])) if "pieces" in document else whole
        return Checkpoint(int(document["exchanges"]), state, memory, document["run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error}); remove it to go on from an older one"
        ) from error


def misfit(fresh: Any, stored: Any, where: str = "state") -> str:
    """Why `stored` cannot have come of the first state `fresh`, or the empty string.

    A NamedTuple may have other values later, or be None, but does not turn into something else: then another version of
    fedopt, or of a plug-in, wrote it.
    """
    if not _is_record(fresh) or stored is None:
        return ""
    if not _is_record(stored):
        return f"{where} is a {type(stored).__name__} in it, and {type(fresh).__name__} was needed"
    if type(stored) is not type(fresh):
        return ""
    found = (misfit(getattr(fresh, n), getattr(stored, n), f"{where}.{n}") for n in fresh._fields)
    return next(filter(None, found), "")


def _is_record(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _piece(folder: Path, name: str) -> Path:
    return folder / _PIECES / f"{name}.safetensors"


def _drop_pieces(folder: Path) -> None:
    """Delete the pieces that no checkpoint names, and those that were cut off in the middle."""
    found = list((folder / _PIECES).glob("*"))
    if not found:
        return
    documents = [json.loads((path / "state.json").read_text()) for path in _all(folder)]
    needed = {_piece(folder, name) for document in documents for name in document.get("pieces", ())}
    for path in found:
        if path not in needed:
            path.unlink()


def _verified(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path.name} is damaged: its bytes are not those that were written")
    return content


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if p.name.isdigit() and (p / "state.json").exists())


def _contiguous(tensors: Named) -> Named:
    # safetensors refuses tensors that share storage
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _encode(value: Any, tensors: Named) -> Any:
    """A pytree as JSON, its tensors put aside by name."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {"dict": [[key, _encode(v, tensors)] for key, v in value.items()]}
    if _is_record(value):
        fields = {name: _encode(getattr(value, name), tensors) for name in value._fields}
        return {"record": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_encode(v, tensors) for v in value]}
    raise CheckpointError(
        f"a state may hold tensors, numbers, strings, lists, dicts and NamedTuples; {type(value).__name__} was found"
    )


def _decode(value: Any, tensors: Named) -> Any:
    if not isinstance(value, dict):
        return value
    if "record" in value:
        fields = {name: _decode(v, tensors) for name, v in value["fields"].items()}
        return _record(value["record"])(**fields)
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(v, tensors) for key, v in content}
    items = [_decode(v, tensors) for v in content]
    return items if kind == "list" else tuple(items)


def _record(path: str) -> Any:
    """The NamedTuple class of this name. Only modules that the experiment has imported already are looked at."""
    module_name, _, name = path.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise ValueError(f"it holds a '{path}', which is no NamedTuple of this experiment")
    return found
