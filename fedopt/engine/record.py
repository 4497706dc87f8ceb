"""The run folder: what was asked, what happened, exchange by exchange.

    config.toml      the resolved experiment          run.json         status, versions, executor
    partition.json   who holds what                   metrics.jsonl    one line per exchange
    checkpoints/     see fedopt.engine.checkpoint     model.safetensors  the final model, by parameter name
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from fedopt.data import counts
from fedopt.engine.adversary import Adversary
from fedopt.engine.loop import Step
from fedopt.problem import Problem
from fedopt.types import Codec, FedoptError, Named

FSYNC_SECONDS = 1.0


class RecordError(FedoptError):
    """The run folder cannot be written."""


def exchange_line(step: Step, codec: Codec) -> dict[str, Any]:
    """What metrics.jsonl says of an exchange, before evaluation."""
    exchange, replies = step.replies.exchange, step.replies
    losses = replies.metrics.get("loss")
    loss = [] if losses is None else losses.tolist()
    weights = replies.metrics.get("steps")
    line: dict[str, Any] = {
        "exchange": step.number,
        "round": int(step.state.round),
        "program": exchange.program,
        "asked": exchange.clients.numel(),
        "answered": replies.clients.numel(),
        "clients": replies.clients.tolist(),
        "client_loss": loss,
        "rejected": [{"client": r.client, "reason": r.reason} for r in replies.rejected],
    }
    if weights is not None:
        line["client_steps"] = weights.tolist()
    if loss:
        line["train_loss"] = sum(loss) / len(loss)
    down, up = traffic(step, codec)
    return {**line, "bytes_up": up, "bytes_down": down, "seconds": step.seconds, "info": step.info}


def traffic(step: Step, codec: Codec) -> tuple[int, int]:
    """Bytes (down, up) of an exchange: encoded vectors, and 4 bytes for a number beside them.

    Rejected answers were sent too. Rows `[n, k]` and a mean `[1, k]` are both k entries per client.
    """
    exchange, replies = step.replies.exchange, step.replies
    asked = exchange.clients.numel()
    down = asked * sum(size(value, codec) for value in exchange.down.values())
    down += sum(asked * size(value[0], codec) for value in exchange.own.values() if asked)
    sent = replies.clients.numel() + len(replies.rejected)
    up = sum(size(value[0], codec) for value in replies.vectors.values() if value.shape[0])
    return down, sent * (up + 4 * (len(replies.metrics) + 1))


def size(value: Tensor, codec: Codec) -> int:
    """Bytes of one value on the wire."""
    return codec.nbytes(value.numel()) if value.dim() else 4


def describe_partition(problem: Problem, adversary: Adversary) -> dict[str, Any]:
    """partition.json: class names, and per client its name, sizes and label counts."""
    data = problem.data
    labels = counts(data).tolist()
    train = data.splits["train"].sizes.tolist()
    valid = data.splits["valid"].sizes.tolist() if "valid" in data.splits else [0] * data.clients
    clients = [
        {"client": i, "name": data.client_names[i], "train": train[i], "valid": valid[i], "labels": labels[i]}
        for i in range(data.clients)
    ]
    server = {name: int(split.y.shape[0]) for name, split in data.server.items()}
    names = list(data.class_names) if labels and len(labels[0]) == len(data.class_names) else ["samples"]
    return {"class_names": names, "clients": clients, "attackers": adversary.clients.tolist(), "server": server}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write atomically."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(finite(document), indent=1) + "\n")
    draft.replace(path)


def finite(value: Any) -> Any:
    """The same document with null for NaN and infinities, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, Tensor):
        return finite(value.tolist())
    return value


def read_lines(path: Path, before: int | None = None) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl (of exchanges below `before`); a line cut by a crash is left out."""
    lines = []
    if path.exists():
        for text in path.read_bytes().splitlines(keepends=True):
            if not text.endswith(b"\n"):
                break
            line = json.loads(text)
            if before is None or line["exchange"] < before:
                lines.append(line)
    return lines


class Metrics:
    """Appends lines to metrics.jsonl: each is handed to the system at once, and to the disk about once a second."""

    def __init__(self, path: Path, before: int = 0) -> None:
        """Keep the lines of exchanges below `before`, drop the rest."""
        self.path = path
        kept = read_lines(path, before)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        draft.replace(path)
        self.lines = kept
        self._file = path.open("ab")
        self._synced = time.monotonic()

    def append(self, line: dict[str, Any]) -> dict[str, Any]:
        """Write one line; returns it as written."""
        line = finite(line)
        content = (json.dumps(line) + "\n").encode()
        end = self._file.tell()
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise RecordError(
                f"{self.path} cannot be written ({error}); free some space, then continue with 'fedopt resume'"
            ) from error
        self.lines.append(line)
        if time.monotonic() - self._synced > FSYNC_SECONDS:
            self.sync()
        return line

    def sync(self) -> None:
        """Everything so far to the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sync()
        self._file.close()


def named_model(problem: Problem, model: Named) -> Named:
    """The model by the names that plain torch knows: a state_dict."""
    params, buffers = problem.unpack(model)
    named = {**params, **problem.network.fixed, **buffers}
    return {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}
