"""Flower's SuperLink, with a count of those who did not come in, which Flower keeps no account of.

python -m fedopt.wire.superlink COUNTS.json (what flower-superlink takes)
"""

from __future__ import annotations

import functools
import json
import logging
import re
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

REASONS = {
    "unregistered": "its key is not registered",
    "unauthenticated": "it showed no key, a wrong signature, or a clock that is too far from this one",
    "authority": "it has another authority than the one that signed the server's certificate",
    "expired": "it finds the server's certificate out of date",
    "certificate": "it finds something else wrong with the server's certificate",
    "no_tls": "it does not speak TLS",
}

_ALERTS = {48: "authority", 45: "expired", 42: "certificate", 43: "certificate", 46: "certificate"}
"""Fatal alerts of clients (RFC 8446, section 6.2)."""

_UNREGISTERED = re.compile(r"/v1/fleet/(activate|register)-node")

_FATAL, _ALERT, _HEADER = 2, 21, 256

_RECORDS = range(20, 25)
"""What a record of TLS begins with."""


class Counts:
    """How many did not come in, by reason; kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found = Counter(read(path))

    def add(self, reason: str) -> None:
        """One more."""
        with self._lock:
            self._found[reason] += 1
            draft = self._path.with_suffix(".draft")
            try:
                draft.write_text(json.dumps(self._found) + "\n")
                draft.replace(self._path)
            except OSError as error:  # a full disk is no reason not to serve
                logging.getLogger(__name__).warning("%s cannot be written: %s", self._path, error)

    def requested(self, record: logging.LogRecord) -> bool:
        """A line of the access log; a filter that lets all of them through."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            _, _, path, _, status = record.args
            if str(path).startswith("/v1/fleet/") and status == 401:
                self.add("unauthenticated")
            elif _UNREGISTERED.match(str(path)) and isinstance(status, int) and status >= 400:
                self.add("unregistered")
        return True

    def heard(self, conn: Any, direction: str, version: Any, kind: int, message: Any, data: bytes) -> None:
        """A piece of TLS."""
        if direction != "read" or not data:
            return
        if kind == _HEADER and data[0] not in _RECORDS:
            self.add("no_tls")
        elif kind == _ALERT and len(data) == 2 and data[0] == _FATAL and data[1] in _ALERTS:
            self.add(_ALERTS[data[1]])

    def watching(self, config: Any, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """A server's TLS whose alerts are counted; `ssl_context_factory` of uvicorn."""
        context = make()
        context._msg_callback = self.heard  # type: ignore[attr-defined]  # the one place where alerts are seen
        return context


def read(path: Path) -> dict[str, int]:
    """The counts in a file; none where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(reason): int(number) for reason, number in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def main() -> None:
    """Be the SuperLink."""
    import uvicorn
    from flwr.superlink.cli import flower_superlink

    counts = Counts(Path(sys.argv.pop(1)))
    logging.getLogger("uvicorn.access").addFilter(counts.requested)
    uvicorn.run = functools.partial(uvicorn.run, ssl_context_factory=counts.watching)
    flower_superlink()


if __name__ == "__main__":
    main()
